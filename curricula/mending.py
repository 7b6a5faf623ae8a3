"""Documents as the depth module meets them, and what it makes of their states."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.cache import KV
from agp.layers import Place
from agp.models.decoder import Decoder
from agp.packing import MULTIPLE
from curricula import oracle
from curricula.features import Features, Together
from heads import depth, saved, vocabulary

STEP = 8  # positions are rounded up to it, so that few shapes are compiled
WIDE = 32  # documents at once where nothing is learned


class Given(NamedTuple):
    """What a step learns from."""

    states: mx.array  # T B n D
    pad: mx.array
    shared: dict[str, KV]
    rows: mx.array  # V D: of the head, for the tokens that count here
    taught: mx.array  # B n V
    chosen: mx.array  # B n


class Mended(NamedTuple):
    """Of positions, N ..., in the order of the features."""

    read: np.ndarray  # N D: normed, as the head takes it
    weights: np.ndarray  # N T: how much each tap counted
    agrees: np.ndarray  # N
    divergence: np.ndarray
    margin: np.ndarray


class Stacked(NamedTuple):
    """The same of each tap, N T ..."""

    read: np.ndarray  # to 11 bits
    agrees: np.ndarray
    divergence: np.ndarray
    margin: np.ndarray


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

    def __init__(self, decoder: Decoder, features: Features, used: np.ndarray, *, taps: int, size: int, top: int,
                 seed: int, rank: int = 0, hosts: int = 1):  # fmt: skip
        self.decoder, self.features, self.used, self.taps, self.top = decoder, features, used, taps, top
        self.rank, self.hosts, self.turn = rank, hosts, -(-len(features.begins) // size)
        self.order = lru_cache(1)(lambda turn: parts(features, size, np.random.default_rng([seed, turn])))

    def __call__(self, step: int, micro: int) -> tuple[Given]:
        number = step - 1
        documents = self.order(number // self.turn)[number % self.turn]
        return (self.given(documents, self.rank, self.hosts),)

    def given(self, documents: np.ndarray, rank: int = 0, hosts: int = 1) -> Given:
        """A host's share; which tokens are told apart is the same for all of them."""
        mine = documents[rank::hosts]
        batch = self.features.together(mine if len(mine) else documents[:1])
        short = -batch.chosen.shape[1] % STEP
        places = np.pad(batch.places, ((0, 0), (short, 0)))
        there = batch.chosen if len(mine) else np.zeros_like(batch.chosen)  # fewer documents than hosts: no weight
        chosen = np.pad(there, ((0, 0), (short, 0)))
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


def mended(head: Any, decoder: Decoder, features: Features, documents: Sequence[Any]) -> Mended:
    """Of all positions of these documents; the whole head, a few positions at a time."""
    found = [pair for part in documents for pair in heard(head, decoder, features, features.together(part))]
    places = np.concatenate([places for places, _ in found])
    order = np.argsort(places, kind="stable")
    return Mended(*(np.concatenate(list(of))[order] for of in zip(*(told for _, told in found), strict=True)))


def heard(head: Any, decoder: Decoder, features: Features, batch: Together) -> Iterator[tuple[np.ndarray, Mended]]:
    said = head(batch.states[: head.taps], Place(batch.end, batch.pad), batch.shared)
    at, places = mx.array(np.flatnonzero(batch.chosen)), batch.places[batch.chosen]
    read, weights = (of.flatten(0, 1)[at] for of in (decoder.norm(said.state), said.weights))
    final = mx.array(features.final(places))
    few = max(1, oracle.ROOM // (2 * decoder.config.vocab_size))
    for some in (slice(k, k + few) for k in range(0, len(places), few)):
        told = oracle.compared(oracle.shares(decoder, final[some]), oracle.said(decoder, read[some]))
        whole = (read[some], weights[some], told.agrees, told.divergence, told.margin)
        yield places[some], Mended(*map(np.array, whole))


def stacked(
    folder: Path, decoder: Decoder, found: Mapping[str, Features]
) -> tuple[list[depth.Head], dict[str, Stacked]]:
    """The modules of a depth stage, one a tap, and what they make of every position of each role."""
    taps = next(iter(found.values())).taps
    modules = [saved.load(folder / f"module-{tap}", depth.Config, lambda of: depth.Head(of, decoder)) for tap in taps]
    states = {}
    for role, features in found.items():
        documents, shape = parts(features, WIDE), (features.count, len(taps))
        into = Stacked(np.empty((*shape, decoder.config.hidden_size), np.float16), *(np.empty(shape) for _ in range(3)))
        for t, module in enumerate(modules):
            told = mended(module, decoder, features, documents)
            for name in Stacked._fields:
                getattr(into, name)[:, t] = getattr(told, name)
        states[role] = into._replace(agrees=into.agrees.astype(bool))
    return modules, states
