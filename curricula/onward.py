"""Going on from states at a tap, as a receiver would: what the blocks above say then, and how much they mind an error.

States are flat here, N D: Gemma 3n's four streams stand side by side.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.layers import tail
from agp.models.decoder import Decoder, Stream
from agp.recompute import recompute
from agp.sites import Visit, plain
from agp.train import drawn
from curricula import oracle
from curricula.exchange import by_hosts
from curricula.features import Features

TOGETHER = 64  # documents


class Part(NamedTuple):
    """Some documents side by side."""

    at: np.ndarray  # positions, N
    where: mx.array  # N: their places among all of the batch
    stream: Stream  # what the blocks above the tap take


class Onward:
    """All positions of one role, after one block."""

    def __init__(self, model: Decoder, features: Features, tap: int):
        self.model, self.features, self.tap = model, features, tap
        self.which = features.taps.index(tap)
        documents = range(len(features.begins))
        self.tokens = np.concatenate([features.of(d, "ids")[features.of(d, "first") - 1 : -1] for d in documents])

    def states(self, at: np.ndarray) -> mx.array:
        return mx.array(self.features.states(at, self.which).reshape(len(at), -1))

    def told(self, at: np.ndarray) -> mx.array:
        """N K: vectors of the tokens that stand there."""
        return self.model.embed_vectors(mx.array(self.tokens[at])).astype(mx.float32)

    @property
    def width(self) -> int:
        return self.states(np.arange(1)).shape[1]

    def sizes(self) -> np.ndarray:
        """Roots of the mean squares of states."""
        scale = self.features.whole("scale")[:, self.which].astype(float)
        return np.sqrt(np.square(scale).reshape(len(scale), -1).mean(-1))

    def batches(self, documents: Sequence[int]) -> list[list[int]]:
        """Alike in how many positions they have, for each row of a batch is as long as the longest."""
        features = self.features
        long = {d: features.of(d, "length") for d in documents}
        order = sorted(documents, key=lambda d: (long[d] - features.of(d, "first"), long[d], d))
        return [order[at : at + TOGETHER] for at in range(0, len(order), TOGETHER)]

    def part(self, documents: Sequence[int]) -> Part:
        given = self.features.together(documents)
        inputs = tail(self.model.embed(given.tokens).inputs, given.chosen.shape[1])
        where = mx.array(np.flatnonzero(given.chosen))
        stream = Stream(given.states[self.which], inputs, given.end, given.pad, given.shared)
        return Part(given.places[given.chosen], where, stream)

    def after(self, part: Part, hidden: mx.array, visit: Visit = plain) -> mx.array:
        """N D: the state that the final norm is for, gone on to from `hidden`."""
        out = self.model.blocks(part.stream._replace(hidden=hidden), start=self.tap + 1, visit=visit)
        return self.model.together(out.hidden).flatten(0, 1)[part.where]

    def read(
        self, documents: Sequence[int], ways: Sequence[Callable[[mx.array, mx.array], mx.array]], group: Any = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of all positions of the documents: which they are, and for each way to change a state (states, told ->
        states) whether the teacher's token is likeliest all the same, and KL(teacher || went on)."""

        def work(batch: list[int]) -> dict[str, np.ndarray]:
            part = self.part(batch)
            states, told = self.states(part.at), self.told(part.at)
            after = mx.stack([self.after(part, put(part, way(states, told))) for way in ways], axis=1)
            final = mx.array(self.features.final(part.at))
            found = oracle.some(("agrees", "divergence"), self.model, self.model.norm(after), final)
            mx.clear_cache()
            return {"at": part.at, "agrees": np.array(found[0]), "divergence": np.array(found[1])}

        found = list(by_hosts(group, self.batches(documents), work, f"going on from block {self.tap}"))
        at, agrees, divergence = (np.concatenate([of[n] for of in found]) for n in ("at", "agrees", "divergence"))
        return at, agrees, divergence

    def sensitivity(self, documents: Sequence[int], seed: int, share: slice = slice(None)) -> np.ndarray:
        """D D, a sum over positions: the slope of the log of a token's share, by the state over its own size, times
        itself. The token is drawn by its share, so a small error times this, twice, is twice the KL that it makes.
        Of a `share` of the batches, each holds what it would hold without."""
        total = np.zeros((self.width, self.width))
        chances = np.random.default_rng(drawn(seed)).random(self.features.count)  # of each position, whoever takes it
        for batch in self.batches(documents)[share]:
            part = self.part(batch)
            final, states = mx.array(self.features.final(part.at)), self.states(part.at)
            tokens = tokens_drawn(self.model, final, chances[part.at])
            due = slopes(self.model, final, tokens)
            (back,) = mx.vjp(partial(self.after, part, visit=recompute()), [part.stream.hidden], [due])[1]
            slope = back.flatten(0, 1)[part.where].reshape(states.shape).astype(mx.float32)
            slope = slope * mx.sqrt(mx.square(states).mean(-1, keepdims=True))
            total = total + np.array(slope.T @ slope).astype(float)
            mx.clear_cache()
        return total


def put(part: Part, states: mx.array) -> mx.array:
    """Flat states into their places; where there is no position, what was there."""
    like = part.stream.hidden
    flat = like.flatten(0, 1)
    flat[part.where] = states.reshape(-1, *like.shape[2:]).astype(like.dtype)
    return flat.reshape(like.shape)


def few(model: Decoder, final: mx.array) -> list[slice]:
    """Positions whose logits may be there at once."""
    size = max(1, oracle.ROOM // model.config.vocab_size)
    return [slice(at, at + size) for at in range(0, len(final), size)]


def tokens_drawn(model: Decoder, final: mx.array, chances: np.ndarray) -> mx.array:
    """Of each last state, one by its share: the first up to which all shares add up to more than the chance."""
    found = []
    for part in few(model, final):
        upto = mx.cumsum(oracle.said(model, model.norm(final[part])).shares, axis=-1)
        below = (upto <= mx.array(chances[part], mx.float32)[:, None] * upto[:, -1:]).sum(-1)
        found.append(mx.minimum(below, model.config.vocab_size - 1).astype(mx.int32))
        mx.eval(found)
    return mx.concatenate(found)


def slopes(model: Decoder, final: mx.array, tokens: mx.array) -> mx.array:
    """N D: of the log of a token's share, by the last state."""

    def logs(states: mx.array, tokens: mx.array) -> mx.array:
        return mx.take_along_axis(oracle.shares(model, states), tokens[:, None], axis=-1).sum()

    found = []
    for part in few(model, final):
        found.append(mx.grad(logs)(final[part], tokens[part]))
        mx.eval(found)
    return mx.concatenate(found)
