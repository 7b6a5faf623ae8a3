"""Real positions of a run, kept beside its package: what an entry is given, and what it was described to say.

Inputs are of half precision, as the package takes them; what is said of them is in double precision, kept as float32.
`inner` is how near decisions were to a tie of which outputs do not tell.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.artifacts import write_safetensors
from agp.models.tensors import shown
from export.ops import Entry, Margins

LARGEST = 1 << 31  # bytes of a file that is read whole


class Part(NamedTuple):
    """Of one entry."""

    feeds: list[dict[str, np.ndarray]]  # columns, those after the last position are zero
    counts: list[int]  # positions of each
    said: dict[str, np.ndarray]  # N C
    inner: dict[str, np.ndarray]  # N C


def described(entry: Entry, feeds: Sequence[Mapping[str, np.ndarray]], counts: list[int], half: bool = True) -> Part:
    """What is said of feeds as they are, or rounded as the package takes them."""
    given, said, inner = [], [], []
    for feed, count in zip(feeds, counts, strict=True):
        given.append({name: x.astype(np.float16 if half else np.float64) for name, x in feed.items()})
        margins = Margins()
        out = entry.describe(margins, {name: x.astype(np.float64) for name, x in given[-1].items()})
        said.append(positions(out, count))
        inner.append(positions(margins.found, count))
    return Part(given, counts, joined(said), joined(inner))


def positions(out: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Columns to N C, of the first so many."""
    return {name: np.asarray(x)[0, :, 0, :count].T for name, x in out.items()}


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def save(path: Path, parts: Mapping[str, Part]) -> None:
    arrays: dict[str, mx.array] = {}
    for entry, part in parts.items():
        arrays[f"{entry}/counts"] = mx.array(part.counts)
        for number, feed in enumerate(part.feeds):
            arrays |= {f"{entry}/{number}/{name}": mx.array(x) for name, x in feed.items()}
        for kind, of in (("said", part.said), ("inner", part.inner)):
            arrays |= {f"{entry}/{kind}/{name}": mx.array(x.astype(np.float32)) for name, x in of.items()}
    write_safetensors(path, arrays)


def load(path: Path) -> dict[str, Part]:
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a sample has {LARGEST:,} at most")
    found: dict[str, Part] = {}
    try:
        stored: Any = mx.load(str(path))
    except RuntimeError as e:
        raise ValueError(f"{path} cannot be read: {shown(str(e))}") from e
    arrays = {name: np.array(x) for name, x in stored.items()}
    for name in sorted(arrays):
        if name.endswith("/counts"):
            counts = arrays[name].tolist()
            found[name.split("/")[0]] = Part([{} for _ in counts], counts, {}, {})
    for name, x in arrays.items():
        entry, kind, *rest = name.split("/")
        if kind == "said":
            found[entry].said[rest[0]] = x
        elif kind == "inner":
            found[entry].inner[rest[0]] = x
        elif kind != "counts":
            found[entry].feeds[int(kind)][rest[0]] = x
    return found
