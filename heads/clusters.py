"""The likeliest token without most of the vocabulary, and whether that is proven: then the whole head says the same.

A row is its cluster's centre, which is multiplied out, and what it differs by. Of that the leading directions are
multiplied out too, more of them on every rung; what is left of row and state can add no more than the product of their
lengths (Cauchy-Schwarz). Directions are chosen, from states, for that product to be small. Rows that might still be
first are opened: read whole. If none that stayed closed may exceed the best opened one, it is proven.

Rounding is part of the bound. A sum of n products, in whatever order, is off by no more than n u / (1 - n u) times the
sum of their sizes (u = 2**-24), which is no more than the product of the lengths. Both sides are granted that, and the
whole head the rounding of its logits besides, so that a tie is never proven. It must add up in float32, as all of MLX's
do that are used here and are not allowed TF32.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from agp.layers import soft_cap
from agp.models.decoder import Decoder
from heads.vocabulary import rows

PART = 1 << 13  # rows of the head at once
ROUNDS = 10  # of k-means: later ones change little
FLOOR = 1e-4  # of the mean variance: directions that no state had are kept apart from nothing
UNIT = 2.0**-24
UNITS = {mx.float32: UNIT, mx.bfloat16: 2.0**-8}  # how far a number is rounded; in float16 logits may run over
SIZES = 2.0**-30, 2.0**30  # of states: their squares neither vanish nor run over; of others nothing is proven
CAPPED = 16 * UNIT  # of the cap: by how much two tanh may be off


@dataclass(frozen=True, kw_only=True)
class Config:
    rows: int
    dim: int
    cap: float | None  # of the logits
    clusters: int
    cuts: tuple[int, ...]  # how many directions have been read of all rows, up to each rung
    opened: int  # rows on a rung
    slip: float  # times a state's length: what a logit here and that of the whole head may be off by together
    unit: float  # to which the whole head rounds its logits


class Scored(NamedTuple):
    """Of states, ...; logits are capped."""

    token: mx.array  # the likeliest of those opened, the lowest of equals
    first: mx.array
    second: mx.array  # of the next one that was opened
    closed: mx.array  # none that stayed closed has more
    proven: mx.array  # the whole head says this token


class Known(NamedTuple):
    token: np.ndarray
    rung: np.ndarray  # on which it was proven; one too many: the whole head was asked


class Asked(NamedTuple):
    """On its way up."""

    state: mx.array  # ... D
    turned: mx.array  # ... D
    size: mx.array  # ... 1
    found: mx.array  # ... V: what has been read so far adds up to


class Head(nn.Module):
    def __init__(self, config: Config, decoder: Decoder):
        super().__init__()
        self.config, self._rows = config, partial(rows, decoder)
        self.turn = mx.zeros((config.dim, config.dim))
        self.centres = mx.zeros((config.clusters, config.dim))
        self.group = mx.zeros(config.rows, mx.int32)
        self.parts = [mx.zeros((config.rows, width)) for width in np.diff((0, *config.cuts)).tolist()]
        self.tails = mx.zeros((len(config.cuts), config.rows))  # lengths of what has not been read
        self.slack = mx.zeros(config.rows)  # times a state's length: rounding

    @property
    def macs(self) -> int:
        """Of one call."""
        return self.upto(self.config.cuts[-1], 1)

    @property
    def climb(self) -> tuple[int, ...]:
        """Of `exact`, up to each rung; the whole head comes on top where the last proves nothing."""
        return tuple(self.upto(cut, rungs) for rungs, cut in enumerate(self.config.cuts, 1))

    def upto(self, cut: int, rungs: int) -> int:
        config = self.config
        return self.turn.size + self.centres.size + (cut + 2 * rungs) * config.rows + rungs * config.opened * config.dim

    def __call__(self, normed: mx.array) -> Scored:
        """Of states, ... D, that the final norm has seen: the last rung at once."""
        asked = self.ask(normed)
        for rung in range(len(self.parts)):
            asked = self.read(asked, rung)
        return self.open(asked, len(self.parts) - 1)

    def exact(self, whole: Callable[[mx.array], mx.array], normed: mx.array) -> Known:
        """The whole head's tokens: `whole` gives its logits, of those states alone of which no rung proves anything."""
        flat = normed.reshape(-1, normed.shape[-1])
        token, rung = np.zeros(len(flat), np.int32), np.full(len(flat), len(self.parts), np.int32)
        left, asked = np.arange(len(flat)), self.ask(flat)
        for at in range(len(self.parts)):
            asked = self.read(asked, at)
            scored = self.open(asked, at)
            mx.eval(scored)
            proven = np.array(scored.proven)
            token[left], rung[left[proven]] = np.array(scored.token), at
            left, stay = left[~proven], mx.array(np.flatnonzero(~proven))
            if not left.size:
                break
            asked = Asked(*(a[stay] for a in asked))
        if left.size:
            token[left] = np.array(mx.argmax(whole(flat[mx.array(left)]), axis=-1))
        return Known(token.reshape(normed.shape[:-1]), rung.reshape(normed.shape[:-1]))

    def ask(self, normed: mx.array) -> Asked:
        state = normed.astype(mx.float32)
        size = mx.sqrt(mx.square(state).sum(-1, keepdims=True))
        fair = (size > SIZES[0]) & (size < SIZES[1])
        state = mx.where(fair, state, 0)
        found = (state @ self.centres.T)[..., self.group]
        return Asked(state, state @ self.turn.T, mx.where(fair, size, mx.inf), found)

    def read(self, asked: Asked, rung: int) -> Asked:
        at, to = (0, *self.config.cuts)[rung : rung + 2]
        return asked._replace(found=asked.found + asked.turned[..., at:to] @ self.parts[rung].T)

    def most(self, asked: Asked, rung: int) -> mx.array:
        """... V: no logit is greater."""
        tail = mx.sqrt(mx.square(asked.turned[..., self.config.cuts[rung] :]).sum(-1, keepdims=True))
        return asked.found + tail * self.tails[rung] + mx.minimum(asked.size, SIZES[1]) * self.slack

    def open(self, asked: Asked, rung: int) -> Scored:
        """The rows that may have most."""
        config, most = self.config, self.most(asked, rung)
        order = mx.argpartition(-most, config.opened, axis=-1)[..., : config.opened + 1]
        ids = order[..., :-1]
        closed = mx.take_along_axis(most, order[..., -1:], axis=-1)[..., 0]
        logits = (self._rows(ids) @ asked.state[..., None])[..., 0]
        first = logits.max(-1)
        token = mx.where(logits == first[..., None], ids, config.rows).min(-1)
        second = mx.where(ids == token[..., None], -mx.inf, logits).max(-1)
        proven = self.apart(first, mx.maximum(second, closed), config.slip * asked.size[..., 0])
        return Scored(token, self.capped(first), self.capped(second), self.capped(closed), proven)

    def apart(self, first: mx.array, other: mx.array, slip: mx.array) -> mx.array:
        """Whether the whole head tells them apart: it rounds before the cap, in it, and after."""
        unit = 1.01 * self.config.unit
        least = self.capped(first - slip - unit * (mx.abs(first) + slip))
        most = self.capped(other + slip + unit * (mx.abs(other) + slip))
        return least - most > unit * (mx.abs(least) + mx.abs(most)) + CAPPED * (self.config.cap or 0)

    def capped(self, logits: mx.array) -> mx.array:
        return logits if self.config.cap is None else soft_cap(logits, mx.array(self.config.cap))


def built(
    decoder: Decoder,
    states: mx.array,
    *,
    clusters: int,
    cuts: tuple[int, ...],
    opened: int,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Config, Head]:
    """From `states`, N D, as the final norm leaves them on text like that to come; they make bounds tight, not true."""
    size, dim = decoder.config.vocab_size, decoder.config.hidden_size
    assert list(cuts) == sorted(set(cuts)) and 0 < cuts[0] and cuts[-1] <= dim, "each rung reads more directions"
    assert 0 < opened < size and 0 < clusters < size, "some rows stay closed"
    slip, unit = rounding(decoder)
    centres, group = clustered(decoder, clusters, seed, progress)
    turn, back = balanced(*spreads(decoder, states, centres, group))
    config = Config(rows=size, dim=dim, cap=decoder.config.final_logit_softcapping, clusters=clusters,
                    cuts=tuple(cuts), opened=opened, slip=slip, unit=unit)  # fmt: skip
    head = Head(config, decoder)
    lengths, off = np.linalg.norm(turn.astype(np.float64), axis=1), gamma(2 * dim + 16)
    kept, tails, slack = np.zeros((size, cuts[-1]), np.float32), np.zeros((len(cuts), size)), np.zeros(size)
    for at, part in pieces(decoder):
        centre = centres[group[at]].astype(np.float64)
        turned = ((part - centre) @ back.T).astype(np.float32)
        exact = turned.astype(np.float64)
        kept[at] = turned[:, : cuts[-1]]
        tails[:, at] = [(1 + off) * np.linalg.norm(exact[:, cut:], axis=1) for cut in cuts]
        missed = np.linalg.norm(part - centre - exact @ turn, axis=1)  # what is stored is not quite the row
        slack[at] = off * (np.abs(exact) @ lengths + np.linalg.norm(centre, axis=1)) + missed
    head.turn, head.centres, head.group = even(turn), mx.array(centres), mx.array(group)
    head.parts = [even(part) for part in np.split(kept, cuts[:-1], axis=1)]
    up = 1 + 2 * UNIT  # a number stored as float32 is no less
    head.tails, head.slack = (mx.array((up * a).astype(np.float32)) for a in (tails, slack))
    mx.eval(head.parameters())
    head.freeze()
    return config, head


def even(a: np.ndarray) -> mx.array:
    """MLX would keep numpy's strides, and copy the whole before each product."""
    return mx.array(np.ascontiguousarray(a))


def gamma(n: int) -> float:
    return n * UNIT / (1 - n * UNIT)


def pieces(decoder: Decoder) -> Iterator[tuple[slice, np.ndarray]]:
    size = decoder.config.vocab_size
    for at in range(0, size, PART):
        to = min(at + PART, size)
        yield slice(at, to), np.array(rows(decoder, mx.arange(at, to)))


def rounding(decoder: Decoder) -> tuple[float, float]:
    """Of the whole head: `slip` and `unit`. Packed weights are scale * n + bias, each larger than both together."""
    head: Any = decoder.embed_tokens if decoder.config.tie_word_embeddings else decoder.lm_head
    packed = isinstance(head, nn.QuantizedLinear | nn.QuantizedEmbedding)
    kind, longest = (head.scales if packed else head.weight).dtype, 0.0
    if kind not in UNITS:
        raise ValueError(f"the head's weights are {kind}; only of float32 and bfloat16 can tokens be proven")
    for at, part in pieces(decoder):
        sizes = np.abs(part)
        if packed:
            sizes += 2 * np.repeat(np.abs(np.array(head.biases[at].astype(mx.float32))), head.group_size, axis=1)
        longest = max(longest, float(np.linalg.norm(sizes, axis=1).max()))
    of_weights = UNITS[kind] if packed and kind != mx.float32 else 0  # a GPU rounds them as it unpacks
    return longest * (2 * gamma(decoder.config.hidden_size + 16) + of_weights), UNITS[kind]


def clustered(
    decoder: Decoder, clusters: int, seed: int, progress: Callable[[], object] = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """Centres, C D, by k-means, and each row's."""
    size = decoder.config.vocab_size
    drawn = np.sort(np.random.default_rng(seed).choice(size, clusters, replace=False))
    centres, group = np.array(rows(decoder, mx.array(drawn))), np.zeros(size, np.int32)
    for last in [False] * ROUNDS + [True]:
        total, count = np.zeros(centres.shape), np.zeros((clusters, 1))
        for at, part in pieces(decoder):
            group[at] = np.argmax(part @ centres.T - np.square(centres).sum(1) / 2, axis=1)
            mine = group[at] == np.arange(clusters, dtype=np.int32)[:, None]
            total += mine.astype(np.float32) @ part
            count += mine.sum(1, keepdims=True)
        centres = centres if last else np.where(count, total / np.maximum(count, 1), centres).astype(np.float32)
        progress()
    return centres, group


def spreads(
    decoder: Decoder, states: mx.array, centres: np.ndarray, group: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Second moments, D D: of what rows differ by from their centres, and of states.

    A state is measured by how far its first choice is above the mean logit, for that is what a bound must not reach.
    """
    given = np.array(states.astype(mx.float32).reshape(-1, states.shape[-1]))
    best, total, moment = np.full(len(given), -np.inf), np.zeros(len(given)), np.zeros((given.shape[1],) * 2)
    for at, part in pieces(decoder):
        logits = given @ part.T
        best, total = np.maximum(best, logits.max(1)), total + logits.sum(1)
        differs = part.astype(np.float64) - centres[group[at]]
        moment += differs.T @ differs
    lead = best - total / len(group)
    measured = given / np.maximum(lead, 1e-3 * np.median(lead))[:, None]
    return moment / len(group), measured.T @ measured / len(given)


def balanced(of_rows: np.ndarray, of_states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in which both moments are one and the same diagonal, the largest first: `turn` for states, `back` for
    rows. Beyond every cut no others have a lower product of mean lengths: it is the sum of singular values left out."""
    r, s = (np.linalg.cholesky(a + FLOOR * np.trace(a) / len(a) * np.eye(len(a))) for a in (of_rows, of_states))
    u, values, _ = np.linalg.svd(r.T @ s)
    turn = (u.T @ r.T) / np.sqrt(values)[:, None]
    return turn.astype(np.float32), np.linalg.inv(turn).T
