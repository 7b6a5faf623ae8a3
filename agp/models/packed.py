"""Which modules of a checkpoint are quantized: what its tensors' shapes say, held against what config.json says."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import mlx.nn as nn

from agp.models.decoder import Decoder
from agp.models.tensors import FLOATS, Tensor, clean, shown, some
from agp.models.weights import module_name
from agp.quant import BITS, GROUPS, Packing, leaves

KINDS = ("weight", "scales", "biases")


def packings(
    model: Decoder, tensors: dict[str, Tensor], said: Mapping[str, Any]
) -> tuple[dict[str, Packing], list[str]]:
    """How each quantized module is packed, and what contradicts; a faulty module's tensors are taken out."""
    modules, found, wrong = leaves(model), {}, []
    for scales in [name for name in tensors if name.endswith(".scales")]:
        path = scales.removesuffix(".scales")
        module = modules.get(path)
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue  # not part of this model: said with the rest of those
        parts = {kind: tensors.get(f"{path}.{kind}") for kind in KINDS}
        if lacking := [f"{path}.{kind}" for kind, part in parts.items() if part is None]:
            wrong.append(f"missing, though {tensors[scales].name} is there: {some(lacking)}")
            packing = None
        else:
            packing = infer(module, *(part for part in parts.values() if part is not None))
            if packing is None:
                shapes = "; ".join(f"{part.name} {part}" for part in parts.values() if part is not None)
                size = list(module["weight"].shape)
                wrong.append(f"no packing of {size} into 2 to 8 bits has these shapes: {clean(shapes, 600)}")
        if packing is not None:
            found[path] = packing
            continue
        for kind in KINDS:
            tensors.pop(f"{path}.{kind}", None)
        del module["weight"]  # judged already
    return found, wrong + contradictions(found, tensors, said)


def infer(module: nn.Module, weight: Tensor, scales: Tensor, biases: Tensor) -> Packing | None:
    """Bits and group size that explain the three shapes; there is at most one such pair."""
    rows, width = module["weight"].shape
    twins = (scales.dtype, scales.shape) == (biases.dtype, biases.shape)
    if weight.dtype != "U32" or scales.dtype not in FLOATS or not twins:
        return None
    seen = (weight.shape, scales.shape)
    for bits, group in product(BITS, GROUPS):
        if width % group == 0 and seen == ((rows, width * bits // 32), (rows, width // group)):
            return Packing(bits, group)
    return None


def contradictions(found: dict[str, Packing], tensors: dict[str, Tensor], said: Mapping[str, Any]) -> list[str]:
    """A module that config.json names must be as it says; its default must fit at least one that it does not name."""
    if not said:
        return []
    named = {module_name(f"{path}.")[:-1]: p for path, p in entries(said) if module_name(f"{path}.")}
    wrong = []
    for path, packing in named.items():
        if found.get(path) != packing and f"{path}.weight" in tensors:
            there = found.get(path, "not quantized")
            wrong.append(f"config.json: {path} is {packing or 'not quantized'}, its tensors are {there}")
    default, others = Packing(said["bits"], said["group_size"]), {p for path, p in found.items() if path not in named}
    if others and default not in others:
        wrong.append(f"config.json: quantization is {default}, the tensors are {some(map(str, sorted(others)))}")
    if not found:
        wrong.append(f"config.json: quantization is {default}, but no tensor is quantized")
    return [f"{len(wrong)} contradictions: {some(wrong, most=400)}"] if len(wrong) > 1 else wrong


def stated(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What config.json says of quantization, module paths as it writes them; and what in it AGP cannot open."""
    text = given.get("text_config")
    places = [
        c.get(key) for key in ("quantization", "quantization_config") for c in (given, text) if isinstance(c, dict)
    ]
    said = next((p for p in places if p), None)
    if said is None:
        return {}, []
    if not isinstance(said, dict) or not all(type(said.get(k)) is int for k in Packing._fields):
        kind = said.get("quant_method", "a method it does not name") if isinstance(said, dict) else said
        return {}, [
            f"config.json: the weights are quantized by {clean(str(kind))}; AGP opens MLX's own (bits, group_size)"
        ]
    modes = {str(v["mode"]) for v in (said, *said.values()) if isinstance(v, dict) and "mode" in v} - {"affine"}
    return said, [f"config.json: quantization mode {shown(mode)}; AGP opens 'affine'" for mode in sorted(modes)]


def entries(said: Mapping[str, Any]) -> Iterator[tuple[str, Packing | None]]:
    """The modules config.json names: how each is packed, None for one that is not."""
    default = {k: said[k] for k in Packing._fields}
    for path, value in said.items():
        if isinstance(value, dict):
            yield path, Packing(**default | {k: value[k] for k in Packing._fields if k in value})
        elif isinstance(value, bool):
            yield path, Packing(**default) if value else None
