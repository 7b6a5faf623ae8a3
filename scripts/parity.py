"""Holds everything against PyTorch: decoders, adapters, training, heads, exports; one table.

agp parity

What each says, every gradient, steps of the optimizer. The judges are transformers, PEFT and twins of the heads, in
double precision; they are installed with the project's tests, so this runs from a checkout.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

from agp.artifacts import ROOT

JUDGES = ("pytest", "xdist", "torch", "transformers", "peft")


def add_arguments(parser) -> None:
    pass


def run(args) -> int:
    if not (ROOT / "tests/parity").is_dir():
        raise ValueError("agp parity runs from a checkout of the project; what is installed here has no tests")
    if absent := [name for name in JUDGES if find_spec(name) is None]:
        raise ValueError(f"{', '.join(absent)}: not installed; `pip install -e '.[test]'` in {ROOT} brings all judges")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "-m", "not prove", "tests/parity"]
    env = {"OPENBLAS_NUM_THREADS": "1"} | os.environ  # a process a core
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
