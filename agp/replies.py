"""Texts that are continued side by side, each as far as it is: what was forgotten of one stays a hole in its row.

A row's places are those of its own text, so it is turned and masked as it would be alone. One text alone has no holes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import mlx.core as mx
import numpy as np

from agp.cache import KV, Cache, LayerCache
from agp.generate import CHUNK
from agp.models.decoder import Decoder, Stream
from agp.sites import Visit, plain

SLACK = 64  # places that a row may lose; when half of them are holes all rows are closed up

Progress = Callable[[int, int], None]  # prompt tokens done, and all of them


class Rows(NamedTuple):
    """Some rows of a cache, and which token of its row is at each place, R S; below zero: none."""

    cache: Cache
    where: np.ndarray


class Replies:
    """Of each of the `texts` the cache has all tokens but the last."""

    def __init__(self, model: Decoder, cache: Cache, where: np.ndarray, texts: list[list[int]]):
        self.model, self.cache, self.where, self.texts = model, cache, where, texts

    @classmethod
    def begun(
        cls,
        model: Decoder,
        prompts: Sequence[Sequence[int]],
        *,
        slack: int = SLACK,
        chunk: int = CHUNK,
        progress: Progress | None = None,
    ) -> Self:
        """Blocks that make no keys and values are left to the first step."""
        longest, rows = max(map(len, prompts)) - 1, len(prompts)
        ids, where = np.zeros((rows, longest), np.int32), np.arange(longest)[None].repeat(rows, 0)
        for r, prompt in enumerate(prompts):
            ids[r, longest + 1 - len(prompt) :] = prompt[:-1]
            where[r] -= longest + 1 - len(prompt)
        replies = cls(model, model.make_cache(slack), where[:, :0], [list(prompt) for prompt in prompts])
        for at in range(0, longest, chunk):
            part = slice(at, at + chunk)
            replies.run(mx.array(ids[:, part]), model.config.num_producers, where[:, part])
            mx.eval(replies.cache.arrays)
            mx.clear_cache()  # a chunk's scores are larger than anything that decoding needs
            if progress:
                progress(min(at + chunk, longest), longest + 1)
        return replies

    @property
    def current(self) -> mx.array:
        """The last token of each, B 1."""
        return mx.array([text[-1:] for text in self.texts])

    def say(self, tokens: Sequence[Sequence[int]]) -> None:
        """They go on with these, of which the cache has all but the last."""
        for text, more in zip(self.texts, tokens, strict=True):
            text += more

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row that the cache holds."""
        return (self.where >= 0).sum(1)

    @property
    def holes(self) -> int:
        """Places that some row has lost between two of its tokens."""
        first = np.where(self.where >= 0, np.arange(self.where.shape[1]), self.where.shape[1]).min(1, initial=10**9)
        return int((self.where.shape[1] - first - self.lengths).max(initial=0))

    def run(self, tokens: mx.array, stop: int, where: np.ndarray | None = None, visit: Visit = plain) -> Stream:
        """The next tokens of all rows, B L, through the blocks below `stop`; the cache has them then."""
        if where is None:
            where = self.lengths[:, None] + np.arange(tokens.shape[1])
        self.where = np.concatenate([self.where, where], axis=1)
        stream = self.model.embed(tokens, end=self.where.shape[1], where=self.told)
        return self.model.blocks(stream, stop=stop, cache=self.cache, visit=visit)

    def stream(self, hidden: mx.array, inputs: mx.array | None) -> Stream:
        """The newest places, B n, as blocks that make no keys and values take them."""
        config = self.model.config
        shared = {config.layer_types[i]: self.cache.layers[i].held() for i in config.lenders}
        return Stream(hidden, inputs, self.where.shape[1], None, shared, where=self.told)

    @property
    def told(self) -> mx.array | None:
        """Of one row alone nothing need be said."""
        return None if len(self.where) == 1 else mx.array(self.where.astype(np.int32))

    def retain(self, kept: np.ndarray) -> int:
        """Of the last places only those that are `kept`, B n; says how many of the last are no longer there at all."""
        gone = kept.shape[1] - 1 - int(np.flatnonzero(kept.any(axis=0)).max(initial=-1))
        self.cache.trim(gone)
        self.where = self.where[:, : self.where.shape[1] - gone]
        kept = kept[:, : kept.shape[1] - gone]
        last = self.where[:, self.where.shape[1] - kept.shape[1] :]
        last[~kept] = -1
        return gone

    def close(self) -> None:
        """The holes, where there are so many that a window might not be whole."""
        if self.holes > self.cache.slack // 2:
            self.keep(range(len(self.where)))

    def keep(self, rows: Sequence[int]) -> None:
        """These rows alone, closed up."""
        self.texts = [self.texts[row] for row in rows]
        self.cache, self.where = gathered(self.model, [Rows(self.cache, self.where)], [(0, row) for row in rows])

    def join(self, other: Self) -> None:
        """Its rows after these."""
        both = [Rows(of.cache, of.where) for of in (self, other)]
        which = [(n, row) for n, of in enumerate(both) for row in range(len(of.where))]
        self.cache, self.where = gathered(self.model, both, which)
        self.texts += other.texts


def gathered(model: Decoder, given: Sequence[Rows], which: Sequence[tuple[int, int]]) -> tuple[Cache, np.ndarray]:
    """Rows (of which cache, and which row) as one cache without holes, all ends on the right."""
    there = [np.flatnonzero(given[n].where[row] >= 0) for n, row in which]
    length = max(map(len, there))
    where = np.stack([np.arange(length) - (length - len(places)) for places in there])
    cache = model.make_cache(given[0].cache.slack)
    if not length:
        return cache, where
    for i, layer in enumerate(cache.layers):
        parts = [closed(given[n].cache.layers[i], row, at) for (n, row), at in zip(which, there, strict=True)]
        most = max((part for part in parts if part), key=lambda part: part.keys.shape[2])
        whole = [[padded(a, like) for a, like in zip(part or none(most), most, strict=True)] for part in parts]
        layer.put(KV(*(mx.concatenate(list(of)) for of in zip(*whole, strict=True))), length)
    mx.eval(cache.arrays)
    return cache, where


def closed(layer: LayerCache, row: int, places: np.ndarray) -> KV | None:
    """What the layer still holds of a row's places, 1 H S K; none where nothing was ever there."""
    if not layer.offset:
        return None
    held = layer.held()
    first = layer.offset - held.keys.shape[2]
    at = mx.array(places[places >= first] - first)
    return KV(*(a[row : row + 1, :, at] for a in held))


def none(like: KV) -> KV:
    return KV(*(a[:1, :, :0] for a in like))


def padded(a: mx.array, like: mx.array) -> mx.array:
    return mx.pad(a, [(0, 0), (0, 0), (like.shape[2] - a.shape[2], 0), (0, 0)])
