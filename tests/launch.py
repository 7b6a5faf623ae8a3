"""Processes as mlx.launch starts them, each with its rank and the list of hosts, so that a test can kill one alone."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
