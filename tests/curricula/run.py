"""A whole run of the smallest recipe, and its export, made once for all tests that read from them, by whichever worker
comes first."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from curricula import recipes, runner
from scripts import cli

SHARED = "AGP_TESTS"  # names a folder that all workers know
SIZE = ("--room", "160", "--documents", "3", "--weights", "int8", "--from-bytes", "60000")


@cache
def smoke() -> Path:
    """A folder that tests may read and must not change."""
    with alone("smoke") as root:
        runner.run(recipes.stages(recipes.smoke()), root, say=lambda text: None)
    return root


@cache
def exported() -> tuple[Path, Path]:
    """Likewise, as `agp train` leaves it; and what `agp export` makes of it."""
    run, made = smoke().with_name("trained"), smoke().with_name("heads")
    with alone("heads"):
        if not made.exists():
            shutil.copytree(smoke(), run, dirs_exist_ok=True)
            (run / "recipe.json").write_text('{"recipe": "smoke"}')
            assert cli.main(["export", str(run), "--out", str(made), *SIZE]) == 0
    return run, made


@contextmanager
def alone(name: str) -> Iterator[Path]:
    root = Path(os.environ[SHARED]) / name
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield root
