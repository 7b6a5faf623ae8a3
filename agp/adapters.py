"""LoRA and DoRA: small trained matrices beside frozen linears, put in by exact module path and taken out again.

LoRA adds `scale * (x A) B` to what a linear gives. DoRA learns besides how long each row of the adapted weight is; the
length it would have by itself is found without building that weight, and is no part of the gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from agp import quant
from agp.models.decoder import Decoder
from agp.models.tensors import some

ROWS = 1 << 22  # weights in full precision at once, while their lengths are measured


class Part(NamedTuple):
    """One adapted linear."""

    rank: int
    scale: float


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Which linears are adapted, each with its rank and scale; `dora` holds for all of them."""

    parts: Mapping[str, Part]
    dora: bool = False
    dropout: float = 0.0  # of what goes into A, while training


class Adapted(nn.Module):
    def __init__(self, base: nn.Module, part: Part, dora: bool, dropout: float = 0.0):
        super().__init__()
        rows, width = shape(base)
        self.base, self.scale, self.dropout = base, part.scale, dropout
        self.lora_a = mx.random.uniform(-(width**-0.5), width**-0.5, (width, part.rank))
        self.lora_b = mx.zeros((part.rank, rows))
        if dora:
            self._squares = squares(base)  # of the rows of the base: they never change
            self.m = mx.sqrt(self._squares)
        self.eval()

    @property
    def rank(self) -> int:
        return self.lora_a.shape[1]

    def __call__(self, x: mx.array) -> mx.array:
        if "m" not in self:
            return self.base(x) + self.added(x)
        gain = (self.m / mx.stop_gradient(self.length())).astype(x.dtype)
        return with_bias(self.base, (product(self.base, x) + self.added(x)) * gain)

    def added(self, x: mx.array) -> mx.array:
        """In the precision of A and B, rounded once at the end."""
        dropped = nn.Dropout(self.dropout)(x) if self.training and self.dropout else x
        return (self.scale * ((dropped @ self.lora_a) @ self.lora_b)).astype(x.dtype)

    def length(self) -> mx.array:
        """Of each row of W + s (A B)': from |W|, W A and A'A alone."""
        a, b = self.lora_a, self.scale * self.lora_b
        crossed = product(self.base, a.T.astype(kind(self.base))).astype(mx.float32) * b
        return mx.sqrt(mx.maximum(self._squares + (2 * crossed + ((a.T @ a) @ b) * b).sum(0), 1e-30))

    def weight(self) -> mx.array:
        """The adapted weight in float32: what the layer multiplies with."""
        whole = dense(self.base) + self.scale * (self.lora_a @ self.lora_b).T
        return whole * (self.m / mx.linalg.norm(whole, axis=1))[:, None] if "m" in self else whole


def shape(linear: Any) -> tuple[int, int]:
    rows, width = linear.weight.shape
    return rows, width * 32 // linear.bits if isinstance(linear, nn.QuantizedLinear) else width


def kind(linear: Any) -> mx.Dtype:
    """What the layer computes in."""
    return linear.scales.dtype if isinstance(linear, nn.QuantizedLinear) else linear.weight.dtype


def product(linear: Any, x: mx.array) -> mx.array:
    """What the layer gives without its bias."""
    if isinstance(linear, quant.Linear):
        return quant.multiply(x, linear)
    if isinstance(linear, nn.QuantizedLinear):
        packed = linear.weight, linear.scales, linear.biases
        return mx.quantized_matmul(x, *packed, transpose=True, group_size=linear.group_size, bits=linear.bits)
    return x @ linear.weight.T


def with_bias(linear: Any, y: mx.array) -> mx.array:
    return y + linear.bias if "bias" in linear else y


def dense(linear: Any, rows: slice = slice(None)) -> mx.array:
    """The weight, or some rows of it, in float32."""
    if not isinstance(linear, nn.QuantizedLinear):
        return linear.weight[rows].astype(mx.float32)
    scales, biases = (linear[name][rows].astype(mx.float32) for name in ("scales", "biases"))
    return mx.dequantize(linear.weight[rows], scales, biases, linear.group_size, linear.bits)


def squares(linear: nn.Module) -> mx.array:
    rows, width = shape(linear)
    step = max(1, ROWS // width)
    found = [mx.square(dense(linear, slice(at, at + step))).sum(1) for at in range(0, rows, step)]
    for part in found:
        mx.eval(part)
    return mx.concatenate(found)


def adapted(model: nn.Module) -> dict[str, Adapted]:
    return {path: module for path, module in model.named_modules() if isinstance(module, Adapted)}


def linears(model: nn.Module) -> dict[str, nn.Module]:
    return {path: m for path, m in quant.leaves(model).items() if isinstance(m, nn.Linear | nn.QuantizedLinear)}


def attach(model: Decoder, adapter: Adapter, arrays: Mapping[str, mx.array] | None = None) -> None:
    """Freeze `model` and adapt the linears named, with fresh matrices or `arrays` named `path.lora_a` and so on."""
    if wrong := faults(model, adapter):
        raise ValueError(f"this adapter does not fit this model: {some(wrong, 500, '; ')}")
    there = linears(model)
    new = {path: Adapted(there[path], part, adapter.dora, adapter.dropout) for path, part in adapter.parts.items()}
    if arrays is not None:
        fill(new, arrays)
    model.freeze()
    model.update_modules(tree_unflatten(list(new.items())))
    for module in new.values():
        module.unfreeze(recurse=False)


def fill(parts: Mapping[str, Adapted], arrays: Mapping[str, mx.array]) -> None:
    """Every array must land, every part be given all of its own, and none be without effect."""
    wanted = {f"{path}.{name}": a for path, part in parts.items() for name, a in own(part).items()}
    wrong = [f"missing: {some(sorted(wanted.keys() - arrays.keys()))}"] if wanted.keys() - arrays.keys() else []
    if extra := sorted(arrays.keys() - wanted.keys()):
        wrong.append(f"not part of it: {some(extra)}")
    for name in sorted(wanted.keys() & arrays.keys()):
        if wanted[name].shape != arrays[name].shape:
            wrong.append(f"{name} is {list(arrays[name].shape)}, needed is {list(wanted[name].shape)}")
        elif not mx.isfinite(arrays[name].astype(mx.float32)).all().item():
            wrong.append(f"NaN or infinity in {name}")
    if wrong:
        raise ValueError(f"the adapter's arrays do not fit: {some(wrong, 500, '; ')}")
    for path, part in parts.items():
        for name in own(part):
            part[name] = arrays[f"{path}.{name}"].astype(mx.float32)


def own(part: Adapted) -> dict[str, mx.array]:
    return {name: part[name] for name in ("lora_a", "lora_b", "m") if name in part}


def detach(model: Decoder) -> tuple[Adapter, dict[str, mx.array]]:
    """Take the adapter out, whole; `attach` puts it back in. The base is what it was, to the bit."""
    adapter, arrays = current(model)
    model.update_modules(tree_unflatten([(path, part.base) for path, part in adapted(model).items()]))
    return adapter, arrays


def current(model: Decoder) -> tuple[Adapter, dict[str, mx.array]]:
    """The adapter that is attached, and its arrays."""
    parts = adapted(model)
    if not parts:
        raise ValueError("no adapter is attached to this model")
    return described(parts), {f"{path}.{name}": a for path, part in parts.items() for name, a in own(part).items()}


def described(parts: Mapping[str, Adapted]) -> Adapter:
    first = next(iter(parts.values()))
    each = {path: Part(part.rank, part.scale) for path, part in parts.items()}
    return Adapter(parts=each, dora="m" in first, dropout=first.dropout)


def faults(model: Decoder, adapter: Adapter) -> list[str]:
    there, wrong = linears(model), []
    if adapted(model):
        wrong.append("one is attached already; detach it first")
    if unknown := sorted(adapter.parts.keys() - there.keys()):
        wrong.append(f"no linear at {some(unknown)}; there are {some(sorted(there))}")
    if not adapter.parts:
        wrong.append("it names no linear")
    if not 0 <= adapter.dropout < 1:
        wrong.append(f"dropout is {adapter.dropout}; a share from 0 to below 1 is needed")
    for path in sorted(adapter.parts.keys() & there.keys()):
        rank, most = adapter.parts[path].rank, min(shape(there[path]))
        if type(rank) is not int or not 0 < rank <= most:
            wrong.append(f"{path} has rank {rank!r}; 1 to {most} make sense")
        if not 0 < abs(adapter.parts[path].scale) < float("inf"):
            wrong.append(f"{path} has scale {adapter.parts[path].scale!r}; a number that is not 0 is needed")
        if why := useless(model, path):
            wrong.append(f"{path}: {why}")
    return wrong


def useless(model: Decoder, path: str) -> str | None:
    """Why training this linear would do nothing, or something else than it seems."""
    parts = path.split(".")
    if parts[0] == "layers" and parts[-1] in ("k_proj", "v_proj"):
        layer = int(parts[1])
        source = model.config.sources[layer]
        if source != layer:
            return f"block {layer} attends to the keys and values of block {source}; nobody uses its own"
    if parts[-1] in ("prediction_coefs", "correction_coefs"):
        module: Any = linears(model)[path]
        limit = model.config.altup_coef_clip
        if limit is not None and mx.abs(dense(module)).max().item() > limit:
            return f"its weights are clipped to {limit} where they are used, and an adapter would go around that"
    return None


def trainable(model: nn.Module) -> int:
    parameters: Any = tree_flatten(model.trainable_parameters())
    return sum(a.size for _, a in parameters)
