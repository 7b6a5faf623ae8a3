"""Which weights a model has: one digest of all of them, equal on hosts that hold the same."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from tqdm import tqdm

from agp.models import table
from agp.models.decoder import Decoder

ROWS = 1024  # of the per-layer table that are read, on disk or not: reading all of it would take a minute


GLANCE = 1 << 20  # bytes


def glance(folder: Path) -> str:
    """A digest of a checkpoint that takes no time: of each file its name, its size and how it begins.

    Other numbers under the same names and shapes may go unseen; `fingerprint` sees them.
    """
    found = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in (".json", ".safetensors")):
        with path.open("rb") as file:
            found.update(f"{path.name} {path.stat().st_size}\n".encode() + file.read(GLANCE))
    return found.hexdigest()


def fingerprint(model: Decoder) -> str:
    arrays: Any = tree_flatten(model.parameters())
    found, arrays = hashlib.sha256(), sorted((n, a) for n, a in arrays if not n.startswith(f"{table.NAME}."))
    bar = {"total": sum(a.nbytes for _, a in arrays), "unit": "B", "unit_scale": True, "delay": 2, "leave": False}
    with tqdm(desc="digest of the weights", file=sys.stderr, **bar) as shown:
        for name, a in arrays:
            found.update(f"{name} {a.dtype} {a.shape}\n".encode())
            found.update(np.array(a.reshape(-1).view(mx.uint8), copy=False).data)
            shown.update(a.nbytes)
    if table.NAME in model:
        count = model.config.vocab_size_per_layer_input
        rows = model[table.NAME](mx.arange(0, count, max(1, count // ROWS)))
        found.update(f"{table.NAME} {count}\n".encode() + np.array(rows.view(mx.uint8)).tobytes())
    return found.hexdigest()
