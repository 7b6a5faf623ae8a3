"""Write a full-size Gemma 4 E2B of random weights in 4 bits, load it, run it, with its table on disk and in memory.

agp bench e2b
agp bench e2b --weights /big/disk/e2b       keep the weights, or use those that are there

Each trial is a process of its own that finds the files on disk, not in the page cache. Needs 3 GB of disk and 5 GB of
memory; a token takes seconds on a CPU.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mlx.utils import tree_flatten

import agp
from agp.artifacts import RESULTS, ROOT, write_results
from agp.generate import generate
from agp.models.folder import build
from agp.models.known import KNOWN
from agp.models.load import TABLES
from agp.quant import Packing, leaves, swap

COMMAND = "agp bench e2b"
SEED = 0
GB = 1e9
PACKING = Packing(bits=4, group_size=64)
PIECE = 1 << 24  # numbers drawn at once
CONFIG = KNOWN["google/gemma-4-E2B-it"] | {"quantization": PACKING._asdict()}


def add_arguments(parser) -> None:
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="default: a temporary folder, deleted after")
    parser.add_argument("--runs", type=int, default=3, help="trials with each place of the table (default: 3)")
    parser.add_argument("--prompt", type=int, default=64, metavar="N", help="tokens of prompt (default: 64)")
    parser.add_argument("--tokens", type=int, default=8, metavar="N", help="tokens decoded a trial (default: 8)")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where e2b.json goes (default: results/)")
    parser.add_argument("--trial", choices=TABLES, help="only run what is in --weights once, and print JSON")


def run(args) -> None:
    if args.runs < 1 or args.prompt < 1 or args.tokens < 2:
        raise ValueError("at least 1 run, 1 token of prompt and 2 tokens to decode are needed")
    if args.trial and not args.weights:
        raise ValueError("--trial needs --weights, the folder to load")
    if args.trial:
        print(json.dumps(trial(args.weights, args.trial, args.prompt, args.tokens)))
    elif args.weights:
        bench(args.weights, args)
    else:
        with tempfile.TemporaryDirectory(prefix="agp-e2b-") as folder:
            bench(Path(folder), args)


def bench(weights: Path, args) -> None:
    seconds = None if (weights / "config.json").exists() else write_model(weights, CONFIG)
    trials: dict[str, list[dict[str, Any]]] = {table: [] for table in TABLES}
    for _ in range(args.runs):
        for table, done in trials.items():
            done.append(apart(weights, table, args.prompt, args.tokens))
            print(line(table, done[-1]), flush=True)
    texts = {tuple(one.pop("text")) for done in trials.values() for one in done}
    if len(texts) > 1:
        raise ValueError(f"the same weights and prompt gave {len(texts)} greedy texts: {sorted(texts)}")
    print(write(trials, seconds, weights, args))


def write_model(folder: Path, config: dict[str, Any]) -> float:
    """A checkpoint as mlx-lm's converter lays it out, its packed weights drawn as they are; returns seconds."""
    start = time.perf_counter()
    tensors = shapes(config)
    header, end = {}, 0
    for name, (kind, shape) in tensors.items():
        begin, end = end, end + int(np.prod(shape)) * (4 if kind == "U32" else 2)
        header[f"language_model.model.{name}"] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < end + GB:
        raise ValueError(
            f"{folder} has {free / GB:.1f} GB free, the weights take {end / GB:.1f}; give --weights on a larger disk"
        )
    rng = np.random.default_rng(SEED)
    with (folder / "model.safetensors").open("wb") as file:
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        file.write(len(head).to_bytes(8, "little") + head)
        for name, (kind, shape) in tensors.items():
            for piece in numbers(name, kind, shape, rng):
                file.write(piece.tobytes())
        file.flush()
        os.fsync(file.fileno())  # only what is on disk can be dropped from the page cache
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return time.perf_counter() - start


def shapes(config: dict[str, Any]) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of every tensor; MLX is lazy, so nothing of the model is made."""
    model = build(config)
    swap(model, {path: PACKING for path, module in leaves(model).items() if hasattr(module, "to_quantized")})
    parameters: Any = tree_flatten(model.parameters())
    return {name: ("U32" if "uint32" in str(a.dtype) else "BF16", list(a.shape)) for name, a in parameters}


def numbers(name: str, kind: str, shape: list[int], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Weights that spread as 1 / sqrt(width), piece by piece: any bits are weights, scale and bias say which."""
    size = int(np.prod(shape))
    if kind == "U32":
        for start in range(0, size, PIECE):
            yield rng.integers(2**32, size=min(PIECE, size - start), dtype=np.uint32)
        return
    levels = 2**PACKING.bits
    scale = (12 / (levels**2 - 1) / (shape[-1] * PACKING.group_size)) ** 0.5
    value = {"scales": scale, "biases": -scale * (levels - 1) / 2}.get(name.rpartition(".")[2], 1.0)
    yield np.full(size, np.float32(value).view(np.uint32) >> 16, np.uint16)


def apart(weights: Path, table: str, prompt: int, tokens: int) -> dict[str, Any]:
    """One trial in a process of its own."""
    command = [sys.executable, "-m", "scripts.cli", "bench", "e2b", "--trial", table, "--weights", str(weights)]
    command += ["--prompt", str(prompt), "--tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "AGP_QUIET": "1"})
    if done.returncode:
        raise ValueError(f"the trial with the table in {table} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def trial(weights: Path, table: str, prompt: int, tokens: int) -> dict[str, Any]:
    forget(weights)
    before, start = resident(), time.perf_counter()
    loaded = agp.load(weights, table=table)
    seconds, after = time.perf_counter() - start, resident()
    ids = np.random.default_rng(SEED).integers(loaded.config.vocab_size, size=prompt).tolist()
    start = time.perf_counter()
    text, times = [], []
    for step in generate(loaded.model, ids, max_tokens=tokens):
        text.append(step.token)
        times.append(time.perf_counter())
    return {
        "load_seconds": seconds,
        "resident_gb": after,
        "libraries_gb": before,
        "resident_after_text_gb": resident(),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GB,
        "prefill_tokens_per_second": prompt / (times[0] - start),
        "decode_tokens_per_second": (tokens - 1) / (times[-1] - times[0]),
        "text": text,
    }


def forget(folder: Path) -> None:
    """Drop the files from the page cache, where the system lets us."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident() -> float:
    """GB of this process in memory."""
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / GB
    said = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return int(said.stdout) * 1024 / GB


def line(table: str, one: dict[str, Any]) -> str:
    return (
        f"table {table:<6}: loaded in {one['load_seconds']:.1f} s, {one['resident_gb']:.2f} GB resident, "
        f"{one['peak_gb']:.2f} at most; prefill {one['prefill_tokens_per_second']:.1f}, "
        f"decode {one['decode_tokens_per_second']:.2f} tokens/s"
    )


def write(trials: dict[str, list[dict[str, Any]]], seconds: float | None, weights: Path, args) -> Path:
    def figure(key: str) -> dict[str, Any]:
        found = {f"table in {table}": [one[key] for one in done] for table, done in trials.items()}
        return {
            "value": {name: round(float(np.median(values)), 3) for name, values in found.items()},
            "interval": {name: [round(min(values), 3), round(max(values), 3)] for name, values in found.items()},
            "command": COMMAND,
        }

    keys = ("load_seconds", "resident_gb", "prefill_tokens_per_second", "decode_tokens_per_second")
    return write_results(
        "e2b",
        {f"e2b.{key}": figure(key) for key in keys},
        folder=args.folder,
        what="Gemma 4 E2B, random weights in 4 bits, bfloat16 scales; medians, with intervals from least to most",
        config=CONFIG,
        seeds={"weights": SEED, "prompt": SEED},
        counts={"runs": args.runs, "prompt": args.prompt, "tokens": args.tokens},
        file_gb=round((weights / "model.safetensors").stat().st_size / GB, 3),
        write_seconds=None if seconds is None else round(seconds, 1),
        trials=trials,
    )
