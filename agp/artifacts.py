"""What is written down: digests, writes that are whole or not there, the environment, results with their figures."""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import mlx.core as mx

from agp import blas
from agp.figures import faults

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
LIBRARIES = (
    "agp",
    "mlx",
    "mlx-lm",
    "numpy",
    "safetensors",
    "coremltools",
    "coreai-core",
    "torch",
    "transformers",
    "peft",
)
SETTINGS = ("MLX_", "AGX_", "OPENBLAS_", "OMP_", "MKL_", "VECLIB_")  # variables that change speed or numbers


def digest(path: Path | str) -> str:
    """sha256 of a file, or of a folder's file names and contents; symlinks count as what they point to."""
    path = Path(path)
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file())
    return hashlib.sha256("".join(f"{digest(p)}  {name}\n" for name, p in files).encode()).hexdigest()


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A file to write; it takes the place of `path` when it is whole, also after a power cut."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=f".part{path.suffix}")
    os.close(handle)
    part = Path(name)
    try:
        try:
            yield part
        except OSError as e:
            if e.filename is not None:
                raise
            raise OSError(unwritten(path, e.strerror or str(e))) from e  # such as a full disk, which names no file
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)  # mkstemp makes it private
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def cleared(folder: Path) -> None:
    """Of writes that a kill cut short."""
    for path in folder.rglob(".*.part*"):
        if path.is_file():
            path.unlink()


def unwritten(path: Path, why: str) -> str:
    free = shutil.disk_usage(path.parent).free
    return f"{path} could not be written: {why} ({free / 1e6:,.1f} MB are free there). What was there before is whole"


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """No other process may use this folder as long; a lock of one that was killed is gone with it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise ValueError(f"another run is using {out}; wait for it, or give another folder") from e
        yield


def unwritable(out: Path) -> str | None:
    """Why no folder can be made there."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir():
        return f"{there} is a file, and a folder is needed"
    if not os.access(there, os.W_OK):
        return f"{there} cannot be written to"
    try:  # some folders say that they can be written to and cannot
        with tempfile.TemporaryDirectory(dir=there, prefix=".agp-"):
            return None
    except OSError as e:
        return f"nothing can be made in {there}: {e.strerror}"


def write_bytes(path: Path | str, data: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(data)


def write_safetensors(path: Path | str, arrays: dict[str, mx.array], about: dict[str, str] | None = None) -> None:
    """The same arrays make the same file, in whatever order they come."""
    with replacing(path) as part:
        try:
            mx.save_safetensors(str(part), dict(sorted(arrays.items())), about or {"format": "mlx"})
        except RuntimeError as e:
            raise OSError(str(e)) from e  # `replacing` says the rest


def write_json(path: Path | str, value: object) -> None:
    """NaN and infinity are refused: they are not JSON, and a figure that is not a number is not a figure."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


def version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def git(*args: str) -> str | None:
    """What git says about the checkout, or None where there is no git, no checkout or no commit."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def stamp() -> dict:
    """Where and with what a number was made."""
    changed = git("status", "--porcelain", "--", ".", ":!results")  # a result just written is no change to the code
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "chip": mx.device_info()["device_name"],
        "cores": os.cpu_count(),
        "device": str(mx.default_device()),
        "blas": blas.state,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "env": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(SETTINGS)},
    }


def write_results(topic: str, figures: dict[str, dict], *, folder: Path | None = None, **body) -> Path:
    """Write results/<topic>.json: the figures, the environment and whatever `body` says of config, inputs and seeds."""
    if wrong := [f"figure {name} {fault}" for name, figure in figures.items() for fault in faults(figure)]:
        raise ValueError("\n".join(wrong))
    if taken := {"topic", "figures", "environment"} & body.keys():
        raise ValueError(f"write_results fills {sorted(taken)} itself")
    proxy = {} if sys.platform == "darwin" else {"proxy": True}
    path = (folder or RESULTS) / f"{topic}.json"
    whole = {name: {**figure, **proxy} for name, figure in figures.items()}
    write_json(path, {"topic": topic, "figures": whole, "environment": stamp(), **body})
    return path
