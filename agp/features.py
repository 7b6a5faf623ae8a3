"""What the blocks below the lowest trained one give: computed once for a row, kept on disk, read from there ever after.

A row's states do not depend on what it is batched with, so each is computed by itself, to the same bits whenever that
is. The file is memory-mapped; each row in it has a digest, and the folder that of the model and data that made it.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.adapters import adapted
from agp.artifacts import write_json
from agp.language import Given, begun, look_up
from agp.models.decoder import Decoder
from agp.packing import Row, assemble
from agp.targets import block_of

STATES, DIGESTS, ABOUT = "states.bin", "digests.bin", "about.json"
DIGEST = 16  # bytes


class Place(NamedTuple):
    number: int
    at: int  # bytes
    tokens: int


def lowest(model: Decoder) -> int:
    """The lowest block with something to train; 0 where something before all blocks is trained."""
    count = model.config.num_layers
    return max(0, min((block_of(path, count) for path in adapted(model)), default=0))


def lent(model: Decoder, stop: int) -> tuple[str, ...]:
    """The kinds of keys and values that blocks from `stop` on borrow of those below."""
    config = model.config
    borrowers = range(max(stop, config.num_producers), config.num_layers)
    return tuple(sorted({config.layer_types[i] for i in borrowers if config.sources[i] < stop}))


def name(row: Row) -> bytes:
    """By what is in it, and where each example ends."""
    told = b"".join(np.int32(len(e.ids)).tobytes() + e.ids.tobytes() for e in row)
    return hashlib.blake2b(told, digest_size=DIGEST).digest()


class Prefix:
    """States of rows after `stop` blocks, and the keys and values that the blocks above borrow."""

    def __init__(self, model: Decoder, stop: int, rows: Sequence[Row], folder: Path, made_by: Mapping[str, Any]):
        self.model, self.stop, self.folder, self.kinds = model, stop, folder, lent(model, stop)
        like = self.computed(rows[0])
        self.shapes, self.kind = [part.shape[1:] for part in like], like[0].dtype
        self.width = sum(int(np.prod(shape)) for shape in self.shapes) * self.kind.size
        self.places: dict[bytes, Place] = {}
        self.size = 0
        for row in rows:
            tokens = sum(len(e.ids) for e in row)
            if (key := name(row)) not in self.places:
                self.places[key] = Place(len(self.places), self.size, tokens)
                self.size += tokens * self.width
        names = hashlib.sha256(b"".join(self.places)).hexdigest()
        self.open({"blocks": stop, "rows": names, "bytes_a_token": self.width, **made_by})

    def open(self, about: dict[str, Any]) -> None:
        path, known = self.folder / ABOUT, json.loads(json.dumps(about))
        if path.exists() and not holds(path, known):
            shutil.rmtree(self.folder)  # of another model or other rows, or damaged
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            if (free := shutil.disk_usage(self.folder).free) < self.size:
                raise ValueError(
                    f"the states of the frozen blocks take {self.size / 1e6:,.1f} MB, and {self.folder} has "
                    f"{free / 1e6:,.1f} MB free: make room, choose another --out, or do without them (prefix=false)"
                )
        self.states = mapped(self.folder / STATES, (self.size,))
        self.digests = mapped(self.folder / DIGESTS, (len(self.places), DIGEST))
        write_json(path, known)

    def given(self, rows: Sequence[Row], length: int) -> Given:
        """For a batch of rows, filled up to `length`: what `agp.language` starts from."""
        found = [self.of(row) for row in rows]
        whole = [np.zeros((len(rows), length, part.shape[1]), np.uint8) for part in found[0]]
        for r, parts in enumerate(found):
            for into, part in zip(whole, parts, strict=True):
                into[r, : len(part)] = part
        hidden, *lent = (
            mx.array(part).view(self.kind).reshape(len(rows), length, *shape)
            for part, shape in zip(whole, self.shapes, strict=True)
        )
        pairs = iter(a.swapaxes(1, 2) for a in lent)
        return {"hidden": hidden, "shared": {kind: [next(pairs), next(pairs)] for kind in self.kinds}}

    def of(self, row: Row) -> list[np.ndarray]:
        """Bytes of each part, one line a token; computed and kept if they are not there."""
        place = self.places[name(row)]
        block = self.states[place.at : place.at + place.tokens * self.width]
        kept = self.digests[place.number].tobytes()
        if any(kept) and kept != digest(block):
            print(
                f"agp: {self.folder / STATES} is damaged at byte {place.at}; that row is computed again",
                file=sys.stderr,
            )
        if kept != digest(block):
            block[:] = np.concatenate([part.reshape(-1) for part in map(raw, self.computed(row))])
            self.digests[place.number] = np.frombuffer(digest(block), np.uint8)
        ends = np.cumsum([int(np.prod(shape)) * self.kind.size * place.tokens for shape in self.shapes])
        return [part.reshape(place.tokens, -1) for part in np.split(block, ends[:-1])]

    def computed(self, row: Row) -> list[mx.array]:
        """State, then keys and values of each kind; one line a token."""
        tokens = sum(len(e.ids) for e in row)
        stream = self.model.blocks(begun(self.model, look_up(self.model, assemble([row]))), stop=self.stop)
        lent = [a.swapaxes(1, 2) for kind in self.kinds for a in stream.shared[kind]]
        found = [part[0, :tokens] for part in (stream.hidden, *lent)]
        mx.eval(found)
        return found


def holds(path: Path, known: Any) -> bool:
    try:
        return json.loads(path.read_text()) == known
    except ValueError:
        return False


def raw(part: mx.array) -> np.ndarray:
    return np.array(part.reshape(part.shape[0], -1).view(mx.uint8))


def digest(block: np.ndarray) -> bytes:
    return hashlib.blake2b(block.data, digest_size=DIGEST).digest()


def mapped(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """What is not written yet takes no room."""
    with path.open("ab") as file:
        file.truncate(int(np.prod(shape)))
    return np.memmap(path, np.uint8, "r+", shape=shape)
