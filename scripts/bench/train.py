"""Memory and speed of training an adapter beside mlx-lm's own trainer: the same model, rows and linears, in turn.

agp bench train
agp bench train --pairs 2 --vocabulary 16384      a look; results are written for the real vocabulary alone

Gemma-4-shaped, random weights in float32, rows of varied length of which the second half is learned. Each side is a
process of its own and trains an epoch when it is its turn: what else the machine does hits both alike. A first epoch,
in which all is compiled (and, of ours, the states of frozen blocks are kept), is not counted.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from agp.artifacts import RESULTS, ROOT, write_results
from agp.models import gemma4
from agp.stats import paired_ratio
from scripts.bench.decode import SHARED, draw

COMMAND = "agp bench train"
SEED = 0
SIDES = ("ours", "theirs")
VOCABULARY = 262_144
CONFIG: dict[str, Any] = SHARED | {
    "model_type": "gemma4_text",
    "hidden_size": 256,
    "num_hidden_layers": 10,
    "num_kv_shared_layers": 5,
    "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 2,
    "intermediate_size": 1024,
    "num_attention_heads": 4,
    "head_dim": 64,
    "global_head_dim": 128,
    "hidden_size_per_layer_input": 32,
    "sliding_window": 128,
    "tie_word_embeddings": True,
}
CASES = {"all": None, "top": 3}  # blocks with adapters


def add_arguments(parser) -> None:
    parser.add_argument("--pairs", type=int, default=5, help="epochs that are counted, of each side (default: 5)")
    parser.add_argument("--rows", type=int, default=4, help="a batch (default: 4)")
    parser.add_argument("--length", type=int, default=256, help="tokens of the longest row (default: 256)")
    parser.add_argument("--batches", type=int, default=4, help="an epoch (default: 4)")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help=f"default: {VOCABULARY}")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where train.json goes (default: results/)")


def run(args) -> None:
    least = {"pairs": 2, "rows": 1, "batches": 1, "length": 32, "vocabulary": 16}
    given = {name: getattr(args, name) for name in least}
    if wrong := [f"--{name} is {given[name]}; {m} or more is needed" for name, m in least.items() if given[name] < m]:
        raise ValueError("; ".join(wrong))
    with tempfile.TemporaryDirectory(prefix="agp-train-") as name:
        folder = Path(name)
        write_model(folder, args.vocabulary)
        learned = write_rows(folder, args.batches * args.rows, args.length, args.vocabulary)
        found = {case: paired(folder, last, args) for case, last in CASES.items()}
    for case, sides in found.items():
        print(line(case, sides, learned))
    if args.vocabulary != VOCABULARY:
        print("not written: results/train.json is of the real vocabulary")
        return
    print(write(found, learned, args))


def write_model(folder: Path, vocabulary: int) -> None:
    config = CONFIG | {"vocab_size": vocabulary, "vocab_size_per_layer_input": vocabulary}
    model = gemma4.Model(gemma4.Config.from_dict(config))
    arrays: Any = tree_flatten(model.parameters())
    keys = mx.random.split(mx.random.key(SEED), len(arrays))
    named = {f"model.{path}": draw(path, a, key) for (path, a), key in zip(arrays, keys, strict=True)}
    mx.save_safetensors(str(folder / "model.safetensors"), named, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


def write_rows(folder: Path, count: int, length: int, vocabulary: int) -> int:
    """Lengths from a quarter of the longest to it; returns how many tokens are learned."""
    rng = np.random.default_rng(SEED)
    sizes = rng.integers(length // 4, length + 1, count)
    rows = [rng.integers(1, vocabulary, size).tolist() for size in sizes]
    (folder / "rows.json").write_text(json.dumps(rows))
    return sum(len(row) - len(row) // 2 for row in rows)


def paired(folder: Path, last: int | None, args) -> dict[str, list[dict[str, float]]]:
    """Of each side, what it says of every epoch; the first is not counted."""
    epochs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    running = {side: started(side, folder, last, args) for side in SIDES}
    try:
        for number in range(args.pairs + 1):
            for side in SIDES[:: 1 if number % 2 else -1]:
                epochs[side].append(turn(running[side], side))
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
    same(epochs)
    return epochs


def same(epochs: dict[str, list[dict[str, float]]]) -> None:
    first = {side: found[0]["loss"] for side, found in epochs.items()}
    if abs(first["ours"] - first["theirs"]) > 0.05 * first["theirs"]:  # they learn one token of padding a row more
        raise ValueError(f"the sides do not train the same: the first epoch's losses are {first}")
    trained = {side: found[0]["trained"] for side, found in epochs.items()}
    if trained["ours"] != trained["theirs"]:
        raise ValueError(f"the sides train other linears: {trained} numbers")


def started(side: str, folder: Path, last: int | None, args) -> subprocess.Popen:
    told = {"folder": str(folder), "last": last, "rows": args.rows, "epochs": args.pairs + 1, "length": args.length}
    command = [sys.executable, "-m", f"scripts.bench.train_{side}", json.dumps(told)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def turn(process: subprocess.Popen, side: str) -> dict[str, float]:
    assert process.stdin and process.stdout
    process.stdin.write("go\n")
    process.stdin.flush()
    for said in process.stdout:
        if said.startswith("{"):
            return json.loads(said)
    raise ValueError(f"{side}: the process ended before its epoch did, with status {process.wait()}")


def line(case: str, sides: dict[str, list[dict[str, float]]], learned: int) -> str:
    seconds = {side: float(np.median([e["seconds"] for e in found[1:]])) for side, found in sides.items()}
    peak = {side: max(e["peak_bytes"] for e in found) for side, found in sides.items()}
    value, (low, high) = speed(sides)
    return (
        f"{case:<4} {learned / seconds['ours']:.0f} | {learned / seconds['theirs']:.0f} learned tokens/s, {value:.2f} "
        f"[{low:.2f}, {high:.2f}]; peak {peak['ours'] / 1e9:.2f} | {peak['theirs'] / 1e9:.2f} GB, "
        f"{peak['ours'] / peak['theirs']:.3f}"
    )


def speed(sides: dict[str, list[dict[str, float]]]):
    """Ours over theirs, from the seconds of the same epochs."""
    ours, theirs = ([e["seconds"] for e in sides[side][1:]] for side in SIDES)
    return paired_ratio(theirs, ours, SEED)


def write(found: dict[str, dict[str, list[dict[str, float]]]], learned: int, args) -> Path:
    tokens, prefix = speed(found["all"]), speed(found["top"])
    peak = {side: max(e["peak_bytes"] for e in found["all"][side]) for side in SIDES}
    figures = {
        "train.memory_ratio": {"value": peak["ours"] / peak["theirs"], "goal": "<= 0.25"},
        "train.tokens_ratio": {"value": tokens.value, "interval": list(tokens.interval), "goal": ">= 2"},
        "train.prefix_ratio": {"value": prefix.value, "interval": list(prefix.interval), "goal": ">= 3"},
    }
    return write_results(
        "train",
        {name: figure | {"command": COMMAND} for name, figure in figures.items()},
        folder=args.folder,
        what="LoRA of rank 8 on all linears, AdamW, float32, beside mlx_lm.tuner.trainer.train; and on the last blocks",
        config=CONFIG | {"vocab_size": args.vocabulary},
        counts={
            "pairs": args.pairs,
            "rows": args.rows,
            "length": args.length,
            "batches": args.batches,
            "learned": learned,
        },
        seeds={"weights": SEED, "rows": SEED, "bootstrap": SEED},
        blocks=CASES,
        epochs=found,
    )
