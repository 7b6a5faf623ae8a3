"""An adapter made part of the weights: computed in float32, stored as the base is, with what rounding takes measured.

Weights in few bits, and sometimes in 16, cannot hold a small change: it would be swallowed, and the model would be the
base again. Such a layer is refused, or given up its packing; all others of the checkpoint are copied byte for byte.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from tqdm import tqdm

from agp import quant
from agp.adapters import Adapted, adapted, dense
from agp.artifacts import write_json
from agp.models.decoder import Decoder
from agp.models.files import read_json
from agp.models.load import Loaded
from agp.models.tensors import Tensor, some
from agp.models.weights import module_name, pieces, survey
from agp.products import Linear

KEPT = (".json", ".jinja", ".model", ".txt", ".md")  # beside the weights; never code, never a pickle
MOST = 0.5  # of a change's length that rounding may take
TYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32"}


def fuse(model: Decoder, dequantize: bool = False) -> dict[str, float]:
    """Put the adapter into the weights; of each layer, the share of the change that was lost. All or nothing."""
    parts = adapted(model)
    if not parts:
        raise ValueError("no adapter is attached to this model")
    made, lost = {}, {}
    for path, part in tqdm(parts.items(), desc="fusing", delay=2, leave=False):
        made[path], lost[path] = stored(part, dequantize)
        mx.eval(made[path].parameters())
    if swallowed := [f"{path} ({share:.0%})" for path, share in lost.items() if share > MOST]:
        packed = any(isinstance(parts[path].base, nn.QuantizedLinear) for path in parts)
        way = ", or store these layers in 16 bits (--dequantize)" if packed and not dequantize else ""
        raise ValueError(
            f"rounding would take more than half of the adapter's change in {len(swallowed)} of {len(parts)} layers: "
            f"{some(swallowed)}. Keep the adapter apart{way}"
        )
    model.update_modules(tree_unflatten(list(made.items())))
    return lost


def stored(part: Adapted, dequantize: bool) -> tuple[nn.Module, float]:
    """The layer in one piece, and how much of the change its type of number cannot hold."""
    base: Any = part.base
    whole, before = part.weight(), dense(base)
    if isinstance(base, nn.QuantizedLinear) and not dequantize:
        new: Any = quant.blank(linear(whole, base), quant.Packing(base.bits, base.group_size))
        new.weight, scales, biases = mx.quantize(whole, base.group_size, base.bits)
        new.scales, new.biases = scales.astype(base.scales.dtype), biases.astype(base.scales.dtype)
    else:
        new = linear(whole, base)
        new.weight = whole.astype(base.scales.dtype if isinstance(base, nn.QuantizedLinear) else base.weight.dtype)
    if "bias" in base:
        new.bias = base.bias
    change: Any = mx.linalg.norm(whole - before)
    missing: Any = mx.linalg.norm(dense(new) - whole)
    return new, (missing / mx.maximum(change, 1e-30)).item()


def linear(weight: mx.array, base: nn.Module) -> Linear:
    made = Linear(1, 1, bias="bias" in base)
    made.weight = weight
    return made


def write(loaded: Loaded, paths: Mapping[str, Any], folder: Path | str) -> Path:
    """The checkpoint that was loaded, with the layers at `paths` as they are in memory, in a new folder."""
    folder, source = Path(folder), loaded.path
    if folder.exists():
        raise ValueError(f"{folder} exists already; fuse into a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    files: dict[Path, list[Tensor]] = {}
    for tensor in survey(source)[0]:
        files.setdefault(tensor.file, []).append(tensor)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        part = Path(name) / folder.name
        part.mkdir()
        for file in source.iterdir():
            if file.is_file() and file.suffix in KEPT:
                shutil.copyfile(file, part / file.name)
        total = sum(t.size for tensors in files.values() for t in tensors)
        with tqdm(total=total, desc="writing", unit="B", unit_scale=True, delay=2, leave=False) as bar:
            where = {}
            for file, tensors in files.items():
                names = rewrite(tensors, loaded.model, paths, part / file.name, bar.update)
                where |= dict.fromkeys(names, file.name)
        mend(part, where, unpacked(loaded.model, paths, where))
        part.rename(folder)
    return folder


def rewrite(tensors: list[Tensor], model: Decoder, paths: Mapping[str, Any], file: Path, done: Callable) -> list[str]:
    """One shard; the tensors of a layer that changed are written where its weight stood."""
    header, sources, end = {}, [], 0
    for tensor in tensors:
        for name, kind, shape, size, numbers in replaced(tensor, model, paths):
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
            sources.append(numbers)
            end += size
    head = json.dumps({"__metadata__": {"format": "mlx"}, **header}).encode()
    head += b" " * (-len(head) % 8)
    with file.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        for numbers in sources:
            for piece in numbers():
                out.write(piece.data)
                done(piece.nbytes)
    return list(header)


def replaced(
    tensor: Tensor, model: Decoder, paths: Mapping[str, Any]
) -> Iterator[tuple[str, str, list, int, Callable]]:
    """Name, type, shape, bytes and numbers of what stands in a tensor's place: itself, where nothing changed."""
    path, _, kind = (module_name(tensor.name) or "").rpartition(".")
    if path not in paths:
        yield tensor.name, tensor.dtype, list(tensor.shape), tensor.size, lambda: pieces(tensor)
    elif kind == "weight":
        for name, a in layer(model, path).items():
            numbers = lambda a=a: [np.array(a.reshape(-1).view(mx.uint8))]
            yield tensor.name.removesuffix("weight") + name, TYPES[a.dtype], list(a.shape), a.nbytes, numbers


def layer(model: Decoder, path: str) -> dict[str, mx.array]:
    arrays: Any = quant.leaves(model)[path].parameters()
    return arrays


def unpacked(model: Decoder, paths: Mapping[str, Any], where: Mapping[str, str]) -> list[str]:
    """Layers no longer quantized, under the names of the files."""
    plain = {path for path in paths if "scales" not in layer(model, path)}
    stems = [name.removesuffix(".weight") for name in where if name.endswith(".weight")]
    return [stem for stem in stems if (module_name(f"{stem}.weight") or "").removesuffix(".weight") in plain]


def mend(folder: Path, where: Mapping[str, str], plain: list[str]) -> None:
    """What stands beside the weights: which file holds what, and which layers are packed."""
    if (index := folder / "model.safetensors.index.json").exists():
        size = sum((folder / name).stat().st_size for name in set(where.values()))
        write_json(index, {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))})
    config = read_json(folder / "config.json")
    for at in (config, config.get("text_config")):
        for key in ("quantization", "quantization_config"):
            if isinstance(at, dict) and isinstance(at.get(key), dict):
                at[key] |= dict.fromkeys(plain, False)
    write_json(folder / "config.json", config)
