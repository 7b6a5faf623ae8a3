"""Quantized layers: which modules become one, how wide they are, and how a CPU multiplies with them in good time.

MLX's quantized matmul runs at about 2 GFLOP/s on a CPU, a tenth of that in bfloat16. There a layer multiplies in
float32, and from `FEW` rows on it is dequantized first, piece by piece; backwards it is dequantized again, not kept.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
FEW = 8  # rows from which dequantizing costs less than multiplying with packed weights (measured: 6 to 8)
PIECE = 1 << 22  # weights dequantized at once: 16 MiB, of which MLX has up to ten under way
PRECISE = (
    "per_layer_model_projection",
    "per_layer_input_gate",
    "per_layer_projection",
    "altup",
)  # small, and they tell


class Packing(NamedTuple):
    bits: int = 4
    group_size: int = 64

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.group_size}"

    @classmethod
    def of(cls, wanted: int | Mapping[str, Any]) -> "Packing":
        """From `4`, or `{"bits": 4, "group_size": 64}`."""
        if type(wanted) is not int and not isinstance(wanted, Mapping):
            raise ValueError(f"quantize is {wanted!r}; a number of bits or an object of bits and group_size is needed")
        given = {"bits": wanted} if isinstance(wanted, int) else dict(wanted)
        packing, wrong = cls(**{k: v for k, v in given.items() if k in cls._fields}), []
        if unknown := given.keys() - set(cls._fields):
            wrong.append(f"quantize has no {', '.join(sorted(map(str, unknown)))}; it takes {', '.join(cls._fields)}")
        if type(packing.bits) is not int or packing.bits not in BITS:
            wrong.append(f"bits is {packing.bits!r}; one of {', '.join(map(str, BITS))} is needed")
        if type(packing.group_size) is not int or packing.group_size not in GROUPS:
            wrong.append(f"group_size is {packing.group_size!r}; one of {', '.join(map(str, GROUPS))} is needed")
        if wrong:
            raise ValueError("; ".join(wrong))
        return packing


class Linear(nn.QuantizedLinear):
    """For a CPU."""

    def __call__(self, x: mx.array) -> mx.array:
        y = multiply(x, self)
        return y + self["bias"] if "bias" in self else y


class Embedding(nn.QuantizedEmbedding):
    """For a CPU."""

    def as_linear(self, x: mx.array) -> mx.array:
        return multiply(x, self)


Quantized = nn.QuantizedLinear | nn.QuantizedEmbedding


def multiply(x: mx.array, layer: Quantized) -> mx.array:
    """What `mx.quantized_matmul` gives, computed in float32."""
    w, kind = layer["weight"], mx.result_type(x, layer["scales"])
    x, scales, biases = (a.astype(mx.float32) for a in (x, layer["scales"], layer["biases"]))
    group, bits = layer.group_size, layer.bits
    if x.size < FEW * x.shape[-1]:
        return mx.quantized_matmul(x, w, scales, biases, True, group, bits).astype(kind)
    height = max(1, PIECE // x.shape[-1])
    pieces = [slice(i, i + height) for i in range(0, w.shape[0], height)]
    return mx.concatenate([dense(w[p], scales[p], biases[p], group, bits)(x) for p in pieces], axis=-1).astype(kind)


def dense(w: mx.array, scales: mx.array, biases: mx.array, group: int, bits: int) -> Callable:
    """Multiply with weights that are dequantized when their turn comes (MLX would do all layers at the start)."""

    def weights(after: mx.array) -> mx.array:
        return mx.dequantize(mx.depends([w], [after])[0], scales, biases, group, bits)

    @mx.custom_function
    def forward(x):
        return x @ weights(x).T

    @forward.vjp
    def backward(x, cotangent, _):
        return cotangent @ weights(cotangent)

    return forward


def blank(module: nn.Module, packing: Packing) -> Quantized:
    """The quantized layer of the same shape, its weights still to come."""
    cpu = mx.default_device() == mx.cpu
    (rows, width), (bits, group) = module["weight"].shape, packing
    if isinstance(module, nn.Embedding):
        return (Embedding if cpu else nn.QuantizedEmbedding)(rows, width, group, bits)
    return (Linear if cpu else nn.QuantizedLinear)(width, rows, "bias" in module, group, bits)


def swap(model: nn.Module, packings: Mapping[str, Packing]) -> None:
    """Put blank quantized layers in the place of those at these paths."""
    put = lambda path, module: blank(module, packings[path]) if path in packings else module
    model.update_modules(tree_map_with_path(put, model.leaf_modules(), is_leaf=nn.Module.is_module))


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    found: Any = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    return dict(found)


def candidates(model: nn.Module, packing: Packing) -> tuple[list[str], list[str]]:
    """Paths that `quantize` packs, and those it would but for a width that is no multiple of the group size."""
    fit, odd = [], []
    for path, module in leaves(model).items():
        if isinstance(module, nn.Linear | nn.Embedding) and not set(path.split(".")) & set(PRECISE):
            (odd if module["weight"].shape[1] % packing.group_size else fit).append(path)
    return fit, odd


def quantized_paths(model: nn.Module) -> dict[str, Packing]:
    """Every quantized module and how it is packed."""
    return {path: Packing(m.bits, m.group_size) for path, m in leaves(model).items() if isinstance(m, Quantized)}


def bits_per_weight(model: nn.Module) -> float:
    """Of all parameters, scales and biases of the groups counted as overhead."""
    packed = quantized_paths(model)
    size = count = 0
    parameters: Any = tree_flatten(model.parameters())
    for name, a in parameters:
        path, _, kind = name.rpartition(".")
        size += a.nbytes
        if path not in packed or kind == "bias":
            count += a.size
        elif kind == "weight":
            count += a.size * 32 // packed[path].bits
    return 8 * size / count
