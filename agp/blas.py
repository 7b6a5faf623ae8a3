"""Which BLAS MLX multiplies with on a CPU.

The Linux wheel brings the reference BLAS. OpenBLAS, loaded into the global scope before `mlx.core`, answers the same
calls 20 to 40 times faster at float32; loaded after it, it changes nothing. AGP_QUIET=1 silences what is said.
"""

import ctypes
import os
import sys
import warnings
from typing import Literal

State = Literal["openblas", "reference", "late", "accelerate"]

LIBRARY = "libopenblas.so.0"
INSTALL = "apt-get install libopenblas0-pthread"
SAY: dict[State, str] = {
    "accelerate": "MLX multiplies with Accelerate",
    "openblas": "MLX multiplies with OpenBLAS",
    "reference": f"MLX multiplies with its slow reference BLAS; float32 gets 20 to 40 times faster with: {INSTALL}",
    "late": "mlx.core was imported before agp, so MLX keeps its slow reference BLAS; import agp first",
}


def choose() -> State:
    """Load OpenBLAS where it helps and say what MLX will multiply with."""
    if sys.platform == "darwin":
        return "accelerate"
    if "mlx.core" not in sys.modules:
        return "openblas" if found(ctypes.RTLD_GLOBAL) else "reference"
    if "openblas" in os.environ.get("LD_PRELOAD", ""):
        return "openblas"
    return "late" if found(ctypes.RTLD_LOCAL) else "reference"


def found(mode: int) -> bool:
    try:
        ctypes.CDLL(LIBRARY, mode=mode)
    except OSError:
        return False
    return True


def announce(state: State) -> None:
    """One line on stderr. Good news is for the `agp` command to tell: a library that works says nothing."""
    if not os.environ.get("AGP_QUIET"):
        print(f"agp: {SAY[state]}", file=sys.stderr)


def warn(state: State) -> None:
    if state == "reference":
        announce(state)
    if state == "late":
        warnings.warn(SAY[state], RuntimeWarning, stacklevel=4)  # the line that imported agp


state: State = choose()
warn(state)
