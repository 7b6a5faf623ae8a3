"""Training in processes of their own, as mlx.launch starts them: a test can kill one of them alone."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import mlx.core as mx
import numpy as np

ROOT = Path(__file__).parents[1]
MODELS = {"gemma4": ROOT / "agp/assets/tiny-gemma4", "gemma3n": ROOT / "agp/assets/tiny-gemma3n"}


def free_ports(count: int) -> list[int]:
    """One after another, and none taken by what ran before."""
    while True:
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except (OSError, OverflowError):
                continue
            return list(range(first, first + count))


def host_file(folder: Path, size: int = 2) -> Path:
    """Ports of the ring, and one more above them, where the hosts meet."""
    ports = free_ports(size + 1)
    path = folder / f"hosts-{ports[0]}.json"
    path.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports[:size]]))
    return path


def start(command: list[str], rank: int | None = None, hosts: Path | None = None, **env: str) -> subprocess.Popen:
    """Python with `command`; a member of `hosts` where they are given."""
    told = {} if hosts is None else {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)}
    whole = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | told | env
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=whole, **pipes)


def ended(run: subprocess.Popen, within: float = 120) -> tuple[int, str]:
    """Exit status, and all that it said."""
    out, err = run.communicate(timeout=within)
    return run.returncode, out + err


def some_notes(folder: Path) -> Path:
    """Rows of unequal lengths."""
    rows = [{"prompt": f"glorp {i % 7}", "completion": f"zib {i} " + "ba " * (i % 9)} for i in range(60)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def training(notes: Path, out: Path, rows: int, *more: str, family: str = "gemma4") -> list[str]:
    settings = ["length=64", f"rows={rows}", "fit.rate=1e-2", "fit.log_every=1", "fit.evaluate_every=4", *more]
    where = [
        "--model",
        str(MODELS[family]),
        "--dtype",
        "float32",
        "--data",
        str(notes),
        "--out",
        str(out),
        "--wait",
        "20",
    ]
    return ["-m", "scripts.cli", "train", "domain", *where, *settings]


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def arrays(path: Path) -> dict[str, np.ndarray]:
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    return {name: np.array(a) for name, a in loaded.items()}
