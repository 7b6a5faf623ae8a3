"""One command as several processes of this machine, which train as hosts do: a core each.

MLX on a CPU computes most of what it does in one thread. Host 0 speaks for all; what the others say goes into a log in
their folders, which lie within the run's.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, Signals
from tempfile import TemporaryDirectory

import mlx.core as mx

LOG, STARTER = "log", "AGP_STARTER"
SHOWN = 2000  # letters of a log
WHY: dict[int, str] = {SIGKILL: ", as a system does that runs out of memory: --processes 1 takes less"}
GO_ON = "What was saved last is whole, and the same command goes on from it"


def run(count: int, argv: Sequence[str], root: Path) -> int:
    """`argv` is what follows `agp train`; `root` is where that goes."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "hosts.json"
        file.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports(count)]))
        started = [start(rank, argv, place(root, rank), file) for rank in range(count)]
        codes, stopped = waited(started)
    for rank, code in enumerate(codes):
        if code < 0:
            print(f"process {rank} was ended by {Signals(-code).name}{WHY.get(-code, '')}. {GO_ON}", file=sys.stderr)
        log = place(root, rank) / LOG
        if code and not codes[0] and log.exists():
            print(f"process {rank} ended with {code}: {log.read_text()[-SHOWN:]}", file=sys.stderr)
    killed = [128 - code for code in codes if code < 0]  # the others only missed it
    found = next((code for code in killed + codes if code), 0)
    return 130 if stopped and found else found  # the one that was slower may have missed the other first


def alone_if_left() -> None:
    """A process whose starter is gone stops: it has saved what it has, and nobody waits for it."""
    starter = os.environ.get(STARTER)
    if starter is None:
        return

    def watch() -> None:
        while os.getppid() == int(starter):
            time.sleep(1)
        os.kill(os.getpid(), SIGTERM)  # SIGINT may be ignored, as a shell has it for what runs in the background

    threading.Thread(target=watch, daemon=True).start()


def usual() -> int:
    return min(2, os.cpu_count() or 1) if mx.default_device() == mx.cpu else 1


def place(root: Path, rank: int) -> Path:
    return root / f".host-{rank}" if rank else root


def start(rank: int, argv: Sequence[str], out: Path, file: Path) -> subprocess.Popen:
    env = os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(file), "OPENBLAS_NUM_THREADS": "1", "AGP_QUIET": "1"}
    env[STARTER] = str(os.getpid())
    command = [sys.executable, "-m", "scripts.cli", "train", *argv, *(["--out", str(out)] if rank else [])]
    if not rank:
        return subprocess.Popen(command, env=env, start_new_session=True)
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOG).open("w") as log:
        return subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)


def waited(started: Sequence[subprocess.Popen]) -> tuple[list[int], bool]:
    """How each ended, and whether by Ctrl-C: it is passed on, once each time, and each saves what it has."""
    stopped = False
    while True:
        try:
            return [process.wait() for process in started], stopped
        except KeyboardInterrupt:
            stopped = True
            for process in started:
                if process.poll() is None:
                    process.send_signal(SIGINT)


def ports(count: int) -> list[int]:
    """One after another and free, and one more above them, where the hosts meet."""
    while True:
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for port in range(first + 1, first + count + 1):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except (OSError, OverflowError):
                continue
            return list(range(first, first + count))
