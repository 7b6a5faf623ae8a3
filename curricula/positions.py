"""Positions as the trajectory head meets them: states of all taps, those before, a glance at what each would say."""

from typing import Any

import mlx.core as mx
import numpy as np

from agp.models.decoder import Decoder
from curricula.exchange import ranked
from curricula.features import Features
from curricula.labels import Seen
from heads import glimpse, trajectory
from heads.trajectory import Told

CHUNK, PARTS = 1024, 2


class Met:
    """All positions of one role, read by the lens as they are, or as `mended`, N T D."""

    def __init__(
        self,
        decoder: Decoder,
        features: Features,
        glance: glimpse.Head,
        window: int,
        mended: np.ndarray | None = None,
    ):
        self.decoder, self.features, self.window, self.mended = decoder, features, window, mended
        self.facts = np.empty((features.count, len(features.taps), len(glimpse.FACTS)), np.float32)
        for at in chunks(features.count):
            self.facts[at] = np.array(glance(self.read(at)).facts)

    def read(self, at: np.ndarray, states: np.ndarray | None = None) -> mx.array:
        if self.mended is not None:
            return mx.array(self.mended[at].astype(np.float32))
        return normed(self.decoder, self.features.states(at) if states is None else states)

    def seen(self, at: np.ndarray) -> trajectory.Seen:
        states = self.features.states(at)
        now = mx.array(states.reshape(*states.shape[:2], -1))
        before = mx.array(earlier(self.features, at, self.window))
        return trajectory.Seen(now, before, self.read(at, states), mx.array(self.facts[at]))

    def answers(self, head: trajectory.Head) -> Told:
        """As numbers, in double precision."""
        parts = []
        for at in chunks(self.features.count):
            parts.append(head(self.seen(at)))
            mx.eval(parts[-1])
        return Told(*(np.concatenate([np.array(part, np.float64) for part in of]) for of in zip(*parts, strict=True)))

    def read_by(self, head: trajectory.Head) -> np.ndarray:
        parts = []
        for at in chunks(self.features.count):
            parts.append(np.array(head.features(self.seen(at))))
        return np.concatenate(parts)

    def scaled(self, head: trajectory.Head) -> None:
        """Facts and path to zero mean and unit size, a tap each."""
        at = np.linspace(0, self.features.count - 1, min(4096, self.features.count)).astype(int)
        turned = trajectory.path(trajectory.unit(self.seen(at).now))
        given = np.concatenate([np.array(turned), self.facts[at]], axis=-1)
        head.zero, head.size = mx.array(given.mean(0)), mx.array(given.std(0) + 1e-3)


def normed(decoder: Decoder, states: np.ndarray) -> mx.array:
    """N T D: as the lens reads states N T D (Gemma 3n: N T 4 D)."""
    return decoder.norm(decoder.together(mx.array(states)))


def chunks(count: int) -> list[np.ndarray]:
    return [np.arange(at, min(at + CHUNK, count)) for at in range(0, count, CHUNK)]


def earlier(features: Features, at: np.ndarray, window: int) -> np.ndarray:
    """N P W: states at the first tap of the positions before, in order from near to far; zero where none."""
    found = []
    for back in range(1, window):
        there = at - back >= features.begins[features.document[at]]
        states = features.states(np.maximum(at - back, 0), tap=0)
        found.append(states.reshape(len(at), -1) * there[:, None])
    return np.stack(found, axis=1)


def judged(features: Features) -> Seen:
    return Seen(*(features.whole(name) for name in ("agrees", "divergence", "margin")))


def shares(group: Any, rows: np.ndarray) -> list[np.ndarray]:
    """This host's parts of a batch. Two hosts have one each and a single one both, so that sums are rounded alike."""
    rank, size = ranked(group)
    return [rows[part :: max(PARTS, size)] for part in range(rank, max(PARTS, size), size)]
