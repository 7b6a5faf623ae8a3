"""Which BLAS MLX multiplies with on a CPU.

The Linux wheel brings the reference BLAS. OpenBLAS, loaded into the global scope before `mlx.core`, answers the same
calls 20 to 40 times faster at float32; loaded after it, it changes nothing. AGP_QUIET=1 silences what is said.
"""

import ctypes
import json
import os
import sys
import warnings
from pathlib import Path
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
        if (others := beside()) > 1:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // others)))
        return "openblas" if found(ctypes.RTLD_GLOBAL) else "reference"
    if "openblas" in os.environ.get("LD_PRELOAD", ""):
        return "openblas"
    return "late" if found(ctypes.RTLD_LOCAL) else "reference"


def beside() -> int:
    """Processes that mlx.launch runs on this machine: their threads would stand in each other's way."""
    try:
        hosts = [host[0].rpartition(":")[0] for host in json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())]
        return hosts.count(hosts[int(os.environ["MLX_RANK"])])
    except (OSError, ValueError, LookupError, AttributeError):  # started otherwise; agp.hosts says what is wrong
        return 1


def found(mode: int) -> bool:
    try:
        ctypes.CDLL(LIBRARY, mode=mode)
    except OSError:
        return False
    return True


def uncopied() -> bool:
    """Whether OpenBLAS multiplies small matrices as they lie: it does so with AVX-512."""
    if state != "openblas":
        return False
    core = ctypes.CDLL(LIBRARY).openblas_get_corename
    core.restype = ctypes.c_char_p
    return core() in (b"SkylakeX", b"Cooperlake", b"SapphireRapids")


def threads() -> int:
    """With which OpenBLAS multiplies what is large."""
    return ctypes.CDLL(LIBRARY).openblas_get_num_threads()


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
