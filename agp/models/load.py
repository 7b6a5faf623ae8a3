"""Open a checkpoint: a folder or a Hub id in, a model with its config and tokenizer out, or one error that says all.

Headers, names, shapes and config are compared before a number is read; then one tensor after another is read, checked
and, where asked for, quantized, so that memory holds the model and one tensor more.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from agp import quant
from agp.models import table as disk
from agp.models.decoder import Decoder
from agp.models.files import read_json
from agp.models.fill import fill
from agp.models.folder import build, find
from agp.models.layout import Layout
from agp.models.packed import packings, stated
from agp.models.tensors import Tensor, clean, some
from agp.models.weights import compare, ours, surveyed
from agp.text import Tokenizer, open_tokenizer

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
TABLES = ("disk", "memory")
LONGEST_FAULT = 4000  # characters


@dataclass(frozen=True)
class Loaded:
    model: Decoder
    config: Layout
    tokenizer: Tokenizer | None  # where the folder has one
    path: Path
    model_type: str  # of config.json
    notes: tuple[str, ...]  # what was decided on the way, also said on stderr


@dataclass
class Checkpoint:
    """What is known of a folder before its weights are read, and everything wrong with it."""

    folder: Path
    given: dict[str, Any]  # config.json
    model: Decoder | None
    tensors: dict[str, Tensor]
    stored: dict[str, quant.Packing]
    tokenizer: Tokenizer | None
    wrong: list[str]


def load(
    path_or_hub_id: str | Path,
    revision: str | None = None,
    dtype: str | None = None,
    quantize: int | Mapping[str, Any] | None = None,
    table: str | None = None,
    spare_kv: bool = False,
) -> Loaded:
    """Open a Gemma 3n or Gemma 4 checkpoint.

    dtype     "float32", "float16" or "bfloat16": of weights that are not packed, and of scales; as stored if None
    quantize  4, or {"bits": 4, "group_size": 64}: quantize while loading
    table     "disk" or "memory": where the per-layer embedding table stays; on disk if None and memory is short
    spare_kv  keep the keys and values that Gemma 3n's borrowing blocks do not use, for regimes in which they do
    """
    wrong = (
        [] if dtype is None or dtype in tuple(DTYPES) else [f"dtype is {dtype!r}; one of {', '.join(DTYPES)} is needed"]
    )
    wrong += [] if table is None or table in TABLES else [f"table is {table!r}; 'disk' or 'memory' is needed"]
    if wrong:
        raise ValueError("; ".join(wrong))
    packing = None if quantize is None else quant.Packing.of(quantize)
    found = examine(find(path_or_hub_id, revision), spare_kv)
    model, wrong = found.model, found.wrong
    if found.stored and packing:
        wrong.append("quantize is given, but the checkpoint is quantized already; leave it out")
    if table == "disk" and model is not None and disk.NAME not in model:
        wrong.append("table='disk', but this model has no per-layer embedding table; leave it out")
    if wrong or model is None:
        raise ValueError(report(found.folder, wrong))
    kind = None if dtype is None else DTYPES[dtype]
    notes = ["code named in config.json (auto_map) is ignored"] if "auto_map" in found.given else []
    notes += leave_table(model, found, table, kind, packing is not None)
    pack, more = choose(model, packing)
    try:
        bad = fill(model, found.tensors, pack, kind)
    except ValueError as e:
        raise ValueError(report(found.folder, [str(e)])) from e
    if bad:
        raise ValueError(report(found.folder, [f"NaN or infinity in: {some(bad)}"]))
    say(notes + more)
    return Loaded(model, model.config, found.tokenizer, found.folder, found.given["model_type"], tuple(notes + more))


def examine(folder: Path, spare_kv: bool) -> Checkpoint:
    found = Checkpoint(folder, {}, None, {}, {}, None, [])
    said, tensors, wrong = {}, [], found.wrong
    try:
        found.given = read_json(folder / "config.json")
        said, faults = stated(found.given)
        wrong += faults
        found.model = build(found.given, spare_kv)
    except ValueError as e:
        wrong.append(str(e))
    try:
        found.tokenizer = open_tokenizer(folder, found.given)
    except ValueError as e:
        wrong.append(str(e))
    tensors, faults = surveyed(folder)
    wrong += faults
    if found.model is not None and (tensors or not wrong):  # if none was found, that has been said
        found.tensors, faults = ours(tensors, found.model.config)
        found.stored, contradictions = packings(found.model, found.tensors, said)
        quant.swap(found.model, found.stored)
        wrong += faults + contradictions + compare(found.model, found.tensors)
    return found


def report(folder: Path, wrong: list[str]) -> str:
    wrong = [clean(fault, LONGEST_FAULT) for fault in wrong]
    if len(wrong) == 1:
        return f"cannot load {folder}: {wrong[0]}"
    return f"cannot load {folder}, for {len(wrong)} reasons:\n" + "\n".join(f"- {fault}" for fault in wrong)


def leave_table(
    model: Decoder, found: Checkpoint, choice: str | None, dtype: mx.Dtype | None, packing: bool
) -> list[str]:
    """Put the table on disk where that was chosen or memory is short."""
    if disk.NAME not in model or not disk.stays_on_disk(choice, sum(t.size for t in found.tensors.values())):
        return []
    own = [name for name in found.tensors if name.startswith(f"{disk.NAME}.")]
    parts = {name.removeprefix(f"{disk.NAME}."): found.tensors.pop(name) for name in own}
    model[disk.NAME] = disk.DiskTable(parts, found.stored.get(disk.NAME), dtype)
    size = sum(part.size for part in parts.values()) / 1e9
    notes = [] if choice else [f"the per-layer embedding table ({size:.1f} GB) stays on disk, for memory is short"]
    return notes + (["the per-layer embedding table stays on disk as it is, not quantized"] if packing else [])


def choose(model: Decoder, packing: quant.Packing | None) -> tuple[dict[str, quant.Packing], list[str]]:
    """Swap in what is to be quantized while loading."""
    if packing is None:
        return {}, []
    fit, odd = quant.candidates(model, packing)
    if not fit:
        raise ValueError(f"nothing can be quantized: no width is a multiple of the group size {packing.group_size}")
    pack = dict.fromkeys(fit, packing)
    quant.swap(model, pack)
    return pack, [f"not quantized, for their width is no multiple of {packing.group_size}: {some(odd)}"] if odd else []


def say(notes: list[str]) -> None:
    if not os.environ.get("AGP_QUIET"):
        for note in notes:
            print(f"agp: {note}", file=sys.stderr)
