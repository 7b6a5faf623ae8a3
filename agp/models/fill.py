"""Read sound tensors into a model, one after another: memory holds the model and one tensor more."""

from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from agp.models.decoder import Decoder
from agp.models.tensors import FLOATS, Tensor, clean, finite, some
from agp.quant import Packing


def fill(model: Decoder, tensors: dict[str, Tensor], pack: dict[str, Packing], dtype: mx.Dtype | None) -> list[str]:
    """In the order of the files; returns the names of tensors that hold NaN or infinity, as stored or as asked for."""
    arrays: list[tuple[str, mx.array]] = []
    bad, opened, lazy = [], None, {}
    for name in sorted(tensors, key=lambda name: (tensors[name].file, tensors[name].begin)):
        tensor = tensors[name]
        if tensor.file != opened:
            opened, lazy = tensor.file, stored(tensor)
        array = lazy.pop(tensor.name)
        mx.eval(array)
        sound = all_finite(array)
        if not sound:
            bad.append(tensor.name)
        if tensor.dtype in FLOATS and dtype is not None and array.dtype != dtype:
            array = array.astype(dtype)
            if sound and not all_finite(array):  # a narrower type holds smaller numbers
                bad.append(f"{tensor.name} as {str(dtype).removeprefix('mlx.core.')}")
        path = name.removesuffix(".weight")
        if path != name and path in pack:
            parts = mx.quantize(array, pack[path].group_size, pack[path].bits)
            new = list(zip((name, f"{path}.scales", f"{path}.biases"), parts, strict=True))
        else:
            new = [(name, array)]
        mx.eval([a for _, a in new])
        arrays += new
    parameters: Any = tree_flatten(model.parameters())
    left = {name for name, _ in parameters} - {name for name, _ in arrays}
    assert not left, f"not filled: {some(sorted(left))}"  # they would stay random
    model.update(tree_unflatten(arrays))
    return bad


def stored(tensor: Tensor) -> dict[str, mx.array]:
    """All of that file, none of it read until it is evaluated."""
    try:
        lazy = mx.load(str(tensor.file))
    except RuntimeError as e:  # MLX reads the header too, and takes less
        raise ValueError(f"{tensor.file.name} cannot be read: {clean(str(e), 300)}") from e
    assert isinstance(lazy, dict), "safetensors files open as dictionaries"
    return lazy


def as_numpy(array: mx.array) -> np.ndarray:
    """The same memory; bfloat16, which numpy lacks, as its 16 bits."""
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array, copy=False)


def all_finite(array: mx.array) -> bool:
    """Whole numbers are."""
    if not mx.issubdtype(array.dtype, mx.floating):
        return True
    return finite(as_numpy(array), "BF16" if array.dtype == mx.bfloat16 else "")
