"""A whole run of the smallest recipe, made once for all tests that read from it, by whichever worker comes first."""

import fcntl
import os
from functools import cache
from pathlib import Path

from curricula import recipes, runner

SHARED = "AGP_TESTS"  # names a folder that all workers know


@cache
def smoke() -> Path:
    """A folder that tests may read and must not change."""
    root = Path(os.environ[SHARED]) / "smoke"
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runner.run(recipes.stages(recipes.smoke()), root, say=lambda text: None)
    return root
