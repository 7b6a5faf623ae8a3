"""A whole run of the smallest recipe, made once for all tests that read from it."""

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from curricula import recipes, runner


@cache
def smoke() -> Path:
    """A folder that tests may read and must not change."""
    root = Path(mkdtemp(prefix="agp-smoke-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    runner.run(recipes.stages(recipes.smoke()), root, say=lambda text: None)
    return root
