"""What was harvested, on disk: shards of flat arrays, memory-mapped, read by position or by document.

A position is a place whose next token the teacher chose. States are kept to 11 bits with a scale of their own, for in a
decoder their size differs a thousandfold; keys and values, which are normed, to 11 bits as they are.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.artifacts import write_safetensors
from agp.cache import KV
from agp.models.tensors import read_header
from agp.packing import MULTIPLE

A_DOCUMENT = ("first", "length", "row")
SHARD = "{role}-{number:04}.safetensors"


def halved(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """To 11 bits, and the root mean square by which they were divided."""
    scale = np.sqrt(np.square(states, dtype=np.float32).mean(-1)) + np.float32(1e-30)
    return (states / scale[..., None]).astype(np.float16), scale.astype(np.float32)


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    write_safetensors(path, {name: mx.array(array) for name, array in arrays.items()})


def opened(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, mapped."""
    header, wrong = read_header(path)
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")
    return {tensor.name: tensor.map() for tensor in header}


class Together(NamedTuple):
    """Documents side by side, ends on the right: what blocks and heads take."""

    tokens: mx.array  # B L
    end: int  # position after the last token
    pad: mx.array  # B: positions before the first
    states: mx.array  # T B n D (Gemma 3n: T B n 4 D)
    shared: dict[str, KV]  # of all L
    chosen: np.ndarray  # B n: whether there is a position
    places: np.ndarray  # B n: which one; 0 where there is none


class Features:
    """All positions of one role, 0 ... count - 1 in the order of the shards."""

    def __init__(self, folder: Path, role: str):
        self.about: dict[str, Any] = json.loads((folder / "about.json").read_text())
        self.taps: list[int] = self.about["taps"]
        told = self.about["documents"][role]
        self.shards = [opened(folder / SHARD.format(role=role, number=number)) for number in range(len(told))]
        self.documents: list[dict[str, Any]] = [
            of[row] for of, shard in zip(told, self.shards, strict=True) for row in shard["row"]
        ]
        per = [len(shard["scale"]) for shard in self.shards]
        self.ends, self.count = np.cumsum(per), int(sum(per))
        spans = self.whole("length") - self.whole("first")
        self.document = np.repeat(np.arange(len(spans)), spans)  # of each position
        self.begins = np.cumsum(spans) - spans  # of each document, its first position
        self.homes = [(s, d) for s, shard in enumerate(self.shards) for d in range(len(shard["length"]))]

    def whole(self, name: str) -> np.ndarray:
        return np.concatenate([np.asarray(shard[name]) for shard in self.shards])

    def take(self, name: str, at: np.ndarray, tap: int | None = None) -> np.ndarray:
        """Of these positions, in their order; with a `tap`, counted from 0, no other is read."""
        which = np.searchsorted(self.ends, at, side="right")
        like = self.shards[0][name]
        found = np.empty((len(at), *like.shape[1 if tap is None else 2 :]), like.dtype)
        for s in np.unique(which):
            mine = which == s
            begin = self.ends[s] - len(self.shards[s]["scale"])
            rows = at[mine] - begin
            found[mine] = self.shards[s][name][rows if tap is None else (rows, tap)]
        return found

    def states(self, at: np.ndarray, tap: int | None = None) -> np.ndarray:
        """N T D, as they were; of one tap N D."""
        hidden, scale = self.take("hidden", at, tap), self.take("scale", at, tap)
        return hidden.astype(np.float32) * scale[(...,) + (None,) * (hidden.ndim - scale.ndim)]

    def final(self, at: np.ndarray) -> np.ndarray:
        """N D: the teacher's last state, the one that the final norm is for."""
        return self.take("final", at).astype(np.float32) * self.take("final_scale", at)[:, None]

    def together(self, documents: Sequence[int] | np.ndarray) -> Together:
        """Documents as one batch; what is empty on the left is zero."""
        lengths = [self.of(d, "length") - 1 for d in documents]  # the last token is no input
        counts = [self.of(d, "length") - self.of(d, "first") for d in documents]
        width, count = -(-max(lengths) // MULTIPLE) * MULTIPLE, max(counts)
        rows = len(documents)
        tokens, chosen, places = (
            np.zeros((rows, width), np.int32),
            np.zeros((rows, count), bool),
            np.zeros((rows, count), int),
        )
        kept: dict[str, np.ndarray] = {}
        for r, d in enumerate(documents):
            tokens[r, width - lengths[r] :] = self.of(d, "ids")[:-1]
            chosen[r, count - counts[r] :] = True
            places[r, count - counts[r] :] = self.begins[d] + np.arange(counts[r])
            for name in self.lent:
                part = self.of(d, name)
                kept.setdefault(name, np.zeros((rows, width, *part.shape[1:]), np.float32))[r, width - lengths[r] :] = (
                    part
                )
        states = self.states(places.reshape(-1)).reshape(rows, count, len(self.taps), -1)
        states = np.moveaxis(states * chosen[..., None, None], 2, 0)
        shape = self.shards[0]["hidden"].shape[2:]
        shared = {
            kind: KV(*(mx.array(kept[f"{what}.{kind}"].swapaxes(1, 2)) for what in ("keys", "values")))
            for kind in self.about["lent"]
        }
        end = self.about["end"]
        pad = mx.array([end - length for length in lengths])
        return Together(
            mx.array(tokens), end, pad, mx.array(states.reshape(*states.shape[:3], *shape)), shared, chosen, places
        )

    @property
    def lent(self) -> list[str]:
        return [f"{what}.{kind}" for kind in self.about["lent"] for what in ("keys", "values")]

    def of(self, document: int, name: str) -> Any:
        """What is kept of a document: a number, or lines of all its tokens."""
        s, d = self.homes[document]
        shard = self.shards[s]
        if name in A_DOCUMENT:
            return int(shard[name][d])
        spans = np.asarray(shard["length"]) - (name != "ids")
        end = int(spans[: d + 1].sum())
        return shard[name][end - int(spans[d]) : end]
