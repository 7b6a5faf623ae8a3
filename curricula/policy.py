"""Leaving early by one threshold: at the first of some taps where the score reaches it. What that costs and breaks."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from agp.macs import Macs

GATES = (0.0, 0.2, 0.3, 0.4, 0.5)  # shares of tokens at which nobody would look


class Facing(NamedTuple):
    """What a policy would meet, token by token."""

    score: np.ndarray  # N T: how sure it is that leaving is harmless; minus infinity where nobody looked
    differs: np.ndarray  # N T: whether leaving would change the token
    document: np.ndarray  # N: 0, 1, ... without gaps: the source text, of which there may be many windows


class Price(NamedTuple):
    """In multiplications, of a token."""

    leaving: np.ndarray  # T: of all up to the tap, checks apart, and of the head that says the token
    hoping: np.ndarray  # T: of deciding there whether to look
    looking: np.ndarray  # T: of a look
    whole: float  # of full depth

    def of(self, given: Facing, taps: Sequence[int], at: np.ndarray) -> np.ndarray:
        """N, as a share of full depth, for tokens that left `at` a tap, one past the last for those that did not."""
        checks = np.zeros(len(at))
        for below, tap in zip((-1, *taps), taps, strict=False):  # hope reads every tap on the way
            hoped, looked = self.hoping[below + 1 : tap + 1].sum(), self.looking[tap] * np.isfinite(given.score[:, tap])
            checks += np.where(at >= tap, hoped + looked, 0)
        return (np.append(self.leaving, self.whole)[at] + checks) / self.whole


def price(macs: Macs, taps: Sequence[int], hoping: Sequence[int], looking: Sequence[int]) -> Price:
    leaving = np.array([macs.upto(tap + 1) + macs.head for tap in taps], float)
    return Price(leaving, np.array(hoping, float), np.array(looking, float), float(macs.whole))


def gated(given: Facing, hope: np.ndarray, gate: Sequence[float] | np.ndarray) -> Facing:
    """Nobody looks where there is less hope than the `gate` of the tap asks for."""
    return given._replace(score=np.where(hope >= np.array(gate), given.score, -np.inf))


def left(score: np.ndarray, taps: Sequence[int], threshold: float | None) -> np.ndarray:
    """N: the tap at which each token leaves, one past the last if at none."""
    none = score.shape[1]
    if threshold is None:
        return np.full(len(score), none)
    over = score[:, list(taps)] >= threshold
    return np.where(over.any(1), np.array(taps)[over.argmax(1)], none)


def losses(given: Facing, taps: Sequence[int], grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Documents x thresholds: the share of tokens that left and differ, and the share that left."""
    sizes = np.bincount(given.document)
    padded = np.pad(given.differs, ((0, 0), (0, 1)))
    found = np.empty((2, len(sizes), len(grid)))
    for g, threshold in enumerate(grid):
        at = left(given.score, taps, threshold)
        differs = padded[np.arange(len(at)), at]
        for k, of in enumerate((differs, at < given.score.shape[1])):
            found[k, :, g] = np.bincount(given.document, of, len(sizes)) / sizes
    return found[0], found[1]


def grid(score: np.ndarray, count: int) -> np.ndarray:
    """From the strictest to the laxest, finer where few leave."""
    best = score.max(1)
    best = best[np.isfinite(best)]
    return np.unique(np.quantile(best, 1 - np.linspace(0, 1, count) ** 1.5, method="higher"))[::-1]


class Plan(NamedTuple):
    taps: tuple[int, ...]  # where tokens may leave
    gate: list[float]  # T: the least hope with which it is looked


def cheapest(given: Facing, hope: np.ndarray, price: Price, risk: float, count: int) -> Plan:
    """Of all sets of taps and some gates, what costs least where the mean loss of these documents is within `risk`."""
    every = range(given.score.shape[1])
    sets = [taps for size in every for taps in combinations(every, size + 1)]
    best, least = Plan(sets[0], [-np.inf] * len(every)), np.inf
    for shut in GATES:
        gate = np.quantile(hope, shut, axis=0) if shut else np.full(len(every), -np.inf)
        facing = gated(given, hope, gate)
        for taps in sets:
            tried = grid(facing.score[:, list(taps)], count)
            within = np.flatnonzero(losses(facing, taps, tried)[0].mean(0) <= risk)
            at = left(facing.score, taps, float(tried[within[-1]]) if len(within) else None)
            cost = price.of(facing, taps, at).mean()
            if cost < least:
                best, least = Plan(taps, gate.tolist()), cost
    return best
