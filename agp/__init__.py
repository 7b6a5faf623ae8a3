"""AGP: a Gemma decoder that can be read, stopped, patched and resumed, and the substrate its trained parts stand on.

`agp.load(path_or_hub_id)` is the door. Importing this package is cheap; it only sees to a fast BLAS before MLX loads.
"""

from typing import TYPE_CHECKING

from agp import blas as blas  # before anything that imports mlx.core

if TYPE_CHECKING:
    from agp.models.load import load as load

__version__ = "0.1.0"
__all__ = ["blas", "load"]


def __getattr__(name: str):
    if name == "load":
        from agp.models.load import load

        return load
    raise AttributeError(f"module 'agp' has no attribute {name!r}")
