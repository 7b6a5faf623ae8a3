"""Which tensors of a checkpoint are the model's: shards found, towers and spares dropped, names and shapes compared."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mlx.utils import tree_flatten

from agp.models.decoder import Decoder
from agp.models.files import fault, read_json, there
from agp.models.layout import Layout
from agp.models.tensors import FLOATS, Tensor, clean, read_header, some

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
PREFIXES = ("language_model.model.", "model.language_model.", "language_model.", "model.")
TOWERS = (
    "vision_tower.",
    "audio_tower.",
    "embed_vision.",
    "embed_audio.",
    "vision_embedder.",
    "multi_modal_projector.",
)
BUFFERS = re.compile(r"(.*\.)?(rotary_emb\..*|(\w+_)?inv_freq|(input|output)_(min|max))")
BORROWERS_OWN = re.compile(r"layers\.(\d+)\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\..*")


def surveyed(folder: Path) -> tuple[list[Tensor], list[str]]:
    """Likewise of a folder of which nothing is known: that there are no shards is one fault more."""
    try:
        return survey(folder)
    except ValueError as e:
        return [], [str(e)]


def survey(folder: Path) -> tuple[list[Tensor], list[str]]:
    """Every tensor in the folder's shards, towers included, and everything wrong with the files."""
    files, listed, wrong = shards(folder)
    tensors: list[Tensor] = []
    for file in files:
        try:
            found, faults = read_header(file)
        except OSError as e:
            found, faults = [], [f"{file.name} cannot be read: {e.strerror}"]
        tensors += found
        wrong += faults
    if not tensors and not wrong:
        wrong.append(f"no tensors in {some(file.name for file in files)}")
    if listed is not None:
        held = {t.name: t.file.name for t in tensors}
        if moved := sorted(n for n, file in listed.items() if n in held and held[n] != file):
            wrong.append(f"{INDEX} names another file than the one that holds: {some(moved)}")
        if lacking := sorted(n for n, file in listed.items() if n not in held and (folder / str(file)) in files):
            wrong.append(f"{INDEX} lists what its file does not hold: {some(lacking)}")
        if unlisted := sorted(held.keys() - listed.keys()):
            wrong.append(f"{INDEX} does not list: {some(unlisted)}")
    return tensors, wrong


def shards(folder: Path) -> tuple[list[Path], dict[str, str] | None, list[str]]:
    """The files to read, what the index says of them where there is one, and what is wrong with either."""
    here = sorted(folder.glob("model*.safetensors"))
    if not there(folder / INDEX):
        faults = {file: fault(file) for file in here}
        wrong = [why for why in faults.values() if why] if here else [nothing(folder)]
        return [file for file, why in faults.items() if not why], None, wrong
    listed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict):
        return [], None, [f"{INDEX} has no weight_map"]
    files, wrong = [], [] if listed else [f"{INDEX} names no file"]
    for name in sorted(set(map(str, listed.values()))):
        file = folder / name
        if Path(name).name != name or name == "..":
            wrong.append(f"{INDEX} points outside the folder: {clean(name)}")
        elif file.suffix != ".safetensors":
            wrong.append(f"{INDEX} points to {clean(name)}; only safetensors files are opened")
        elif not there(file):
            wrong.append(f"{INDEX} points to {clean(name)}, which is missing")
        elif why := fault(file):
            wrong.append(why)
        else:
            files.append(file)
    if strays := [file.name for file in here if file not in files and file.name not in listed.values()]:
        wrong.append(f"{INDEX} does not know of: {some(strays)}")
    return files, listed, wrong


def nothing(folder: Path) -> str:
    if pickles := sorted(file.name for pattern in PICKLES for file in folder.glob(pattern)):
        return (
            f"only pickle files here ({some(pickles)}), which can run code when opened and never are; "
            "save the model as safetensors (transformers: save_pretrained)"
        )
    return "no model*.safetensors here"


def ours(tensors: list[Tensor], config: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """By module name, what the text model may hold; towers, buffers, spares and a tied head's copy are left out."""
    kept: dict[str, Tensor] = {}
    wrong = []
    for tensor in tensors:
        name = module_name(tensor.name)
        if name is None or is_spare(name, config):
            continue
        if name in kept:
            wrong.append(f"{clean(kept[name].name)} and {clean(tensor.name)} would both be {clean(name)}")
        kept[name] = tensor
    if config.tie_word_embeddings:
        for name in [name for name in kept if name.startswith("lm_head.")]:
            head, twin = kept.pop(name), kept.get(name.replace("lm_head", "embed_tokens"))
            if twin is not None and not same(head, twin):
                wrong.append(
                    f"config.json ties the head to the embedding, but {clean(head.name)} differs from {twin.name}"
                )
    return kept, wrong


def module_name(stored: str) -> str | None:
    """The name under which the model knows a stored tensor; None for what is no part of it."""
    if stored.removeprefix("model.").startswith(TOWERS) or BUFFERS.fullmatch(stored):
        return None
    prefix = next((p for p in PREFIXES if stored.startswith(p)), "")
    return stored.removeprefix(prefix)


def is_spare(name: str, config: Layout) -> bool:
    """Keys and values of a block that borrows another's: saved by some, used only by regimes that ask for them."""
    found = BORROWERS_OWN.fullmatch(name)
    return found is not None and int(found[1]) >= config.num_producers and not getattr(config, "spare_kv", False)


def same(a: Tensor, b: Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if any(t.end > t.file.stat().st_size for t in (a, b)):
        return True  # cut off: said elsewhere
    return all(np.array_equal(x, y) for x, y in zip(pieces(a), pieces(b), strict=True))


def pieces(tensor: Tensor, size: int = 1 << 24) -> Iterator[np.ndarray]:
    raw = np.memmap(tensor.file, np.uint8, "r", offset=tensor.begin, shape=(tensor.size,))
    return (raw[i : i + size] for i in range(0, tensor.size, size))


def compare(model: Decoder, tensors: dict[str, Tensor]) -> list[str]:
    """What the model lacks, does not know, or wants in another shape or type."""
    parameters: Any = tree_flatten(model.parameters())
    wanted = {name: (a.shape, str(a.dtype)) for name, a in parameters}
    wrong = []
    if missing := [name for name in wanted if name not in tensors]:
        wrong.append(f"missing: {some(missing)}")
    if unknown := [t.name for name, t in tensors.items() if name not in wanted]:
        wrong.append(f"not part of this model: {some(unknown)}")
    shapes, types = [], []
    for name, (shape, dtype) in wanted.items():
        tensor = tensors.get(name)
        if tensor is None:
            continue
        if tensor.shape != tuple(shape):
            shapes.append(f"{tensor.name} is {clean(str(list(tensor.shape)))}, config.json makes it {list(shape)}")
        if tensor.dtype not in (("U32",) if "uint32" in dtype else FLOATS):
            types.append(f"{tensor.name} is {tensor.dtype}")
    wrong += [f"wrong shape: {some(shapes, most=400)}"] if shapes else []
    wrong += [f"wrong type ({', '.join(FLOATS)} are read): {some(types, most=400)}"] if types else []
    return wrong
