"""Documents as the depth module meets them, and what it makes of their states."""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.cache import KV
from agp.layers import Place
from agp.models.decoder import Decoder
from agp.packing import MULTIPLE
from curricula import oracle
from curricula.exchange import by_hosts
from curricula.features import Features
from heads import depth, saved, vocabulary

STEP = 8  # positions are rounded up to it, so that few shapes are compiled
WIDE = 32  # documents at once where nothing is learned
READ = ("agrees", "divergence", "margin")


class Given(NamedTuple):
    """What a step learns from."""

    states: mx.array  # T B n D
    pad: mx.array
    shared: dict[str, KV]
    rows: mx.array  # V D: of the head, for the tokens that count here
    taught: mx.array  # B n V
    chosen: mx.array  # B n


class Mended(NamedTuple):
    """What heads make of all positions of a role, N K ..., in the order of the features."""

    read: np.ndarray  # N K D: normed, as the model's head takes it, to 11 bits
    agrees: np.ndarray
    divergence: np.ndarray
    margin: np.ndarray
    weights: list[np.ndarray]  # of each head N T: how much each tap counted


def loss(head: Any, given: Given, *, decoder: Decoder, end: int) -> depth.Sums:
    place = Place(end, given.pad)
    return depth.loss(head, decoder, given.states, place, given.shared, given.rows, given.taught, given.chosen)


def parts(features: Features, size: int, rng: np.random.Generator | None = None) -> list[np.ndarray]:
    """All documents, like lengths together; with `rng` which ones, and in which order, is drawn."""
    lengths, counts = features.whole("length"), features.whole("length") - features.whole("first")
    other = np.arange(len(counts)) if rng is None else rng.random(len(counts))
    order = np.lexsort((other, -(-counts // STEP), -(-(lengths - 1) // MULTIPLE)))
    found = [order[at : at + size] for at in range(0, len(order), size)]
    if rng is not None:
        rng.shuffle(found)
    return found


class Batches:
    """By number of step: every document once in a turn."""

    def __init__(
        self, decoder: Decoder, features: Features, used: np.ndarray, *, taps: int, size: int, top: int, seed: int
    ):
        self.decoder, self.features, self.used, self.taps, self.top = decoder, features, used, taps, top
        self.turn = -(-len(features.begins) // size)
        self.order = lru_cache(1)(lambda turn: parts(features, size, np.random.default_rng([seed, turn])))

    def __call__(self, step: int, micro: int) -> tuple[Given]:
        number = step - 1
        return (self.given(self.order(number // self.turn)[number % self.turn]),)

    def given(self, documents: np.ndarray) -> Given:
        batch = self.features.together(documents)
        short = -batch.chosen.shape[1] % STEP
        places = np.pad(batch.places, ((0, 0), (short, 0)))
        chosen = np.pad(batch.chosen, ((0, 0), (short, 0)))
        room = [(0, 0), (0, 0), (short, 0)] + [(0, 0)] * (batch.states.ndim - 3)
        states = mx.pad(batch.states[: self.taps], room)
        ids = known(self.features, np.flatnonzero(np.isin(self.features.document, documents)), self.used, self.top)
        taught = lesson(self.features, places.reshape(-1), ids).reshape(*places.shape, -1)
        rows = vocabulary.rows(self.decoder, mx.array(ids))
        return Given(states, batch.pad, batch.shared, rows, mx.array(taught), mx.array(chosen))


def known(features: Features, at: np.ndarray, used: np.ndarray, top: int) -> np.ndarray:
    """Tokens in rising order: the teacher's `top` likeliest of each of these positions, and the most used."""
    needed = np.unique(features.take("taught", at)[:, :top])
    return np.sort(np.concatenate([needed, used[~np.isin(used, needed)]])[: len(used)]).astype(np.int32)


def lesson(features: Features, at: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The teacher's shares of the `known` tokens at these positions."""
    ids, logs = features.take("taught", at), features.take("taught_logs", at).astype(np.float32)
    where = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    shares = np.zeros((len(at), len(known)), np.float32)
    np.add.at(shares, (np.arange(len(at))[:, None], where), np.exp(logs) * (known[where] == ids))
    return shares


def mended(
    heads: Sequence[Any], decoder: Decoder, features: Features, documents: Sequence[np.ndarray], group: Any = None
) -> Mended:
    """`documents` are all that there are, some of them at once."""
    shape = (features.count, len(heads))
    found = Mended(
        read=np.empty((*shape, decoder.config.hidden_size), np.float16),
        agrees=np.empty(shape, bool),
        divergence=np.empty(shape),
        margin=np.empty(shape),
        weights=[np.empty((features.count, head.taps)) for head in heads],
    )
    work = partial(heard, heads, decoder, features)
    for part in by_hosts(group, documents, work, f"mending {len(documents)} batches"):
        at = part["places"]
        for name in ("read", *READ):
            getattr(found, name)[at] = part[name]
        for k, weights in enumerate(found.weights):
            weights[at] = part[f"weights.{k}"]
    return found


def heard(heads: Sequence[Any], decoder: Decoder, features: Features, documents: np.ndarray) -> dict[str, np.ndarray]:
    """The whole vocabulary, a few positions at a time; what the teacher says is read once for all heads."""
    batch = features.together(documents)
    at, places = mx.array(np.flatnonzero(batch.chosen)), batch.places[batch.chosen]
    said = [head(batch.states[: head.taps], Place(batch.end, batch.pad), batch.shared) for head in heads]
    read = mx.stack([decoder.norm(of.state).flatten(0, 1)[at] for of in said], axis=1)
    agrees, divergence, margin = oracle.some(READ, decoder, read, mx.array(features.final(places)))
    found = {"places": places, "read": read.astype(mx.float16), "agrees": agrees}
    found |= {"divergence": divergence, "margin": margin}
    found |= {f"weights.{k}": of.weights.flatten(0, 1)[at] for k, of in enumerate(said)}
    return {name: np.array(of) for name, of in found.items()}


def stacked(
    folder: Path, decoder: Decoder, found: Mapping[str, Features], group: Any = None
) -> tuple[list[depth.Head], dict[str, Mended]]:
    """The modules of a depth stage, one a tap, and what they make of every position of each role."""
    taps = next(iter(found.values())).taps
    modules = [saved.load(folder / f"module-{tap}", depth.Config, lambda of: depth.Head(of, decoder)) for tap in taps]
    return modules, {role: mended(modules, decoder, of, parts(of, WIDE), group) for role, of in found.items()}
