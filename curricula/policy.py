"""Leaving early by one threshold: at the first of some taps where the score reaches it. What that costs and breaks."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from agp.macs import Macs


class Facing(NamedTuple):
    """What a policy would meet, token by token."""

    score: np.ndarray  # N T: how sure it is that leaving is harmless
    differs: np.ndarray  # N T: whether leaving would change the token
    document: np.ndarray  # N: 0, 1, ... without gaps


class Price(NamedTuple):
    """In multiplications, of a token."""

    leaving: np.ndarray  # T: of all up to the tap, checks apart, and of the head that says the token
    looking: np.ndarray  # T: of one check there
    whole: float  # of full depth

    def of(self, left: np.ndarray, taps: Sequence[int]) -> np.ndarray:
        """N, as a share of full depth, for tokens that `left` at a tap, one past the last for those that did not."""
        looked = np.zeros(len(self.looking) + 1)
        looked[list(taps)] = self.looking[list(taps)]
        checks = np.cumsum(looked)[np.minimum(left, len(self.looking))]
        return (np.append(self.leaving, self.whole)[left] + checks) / self.whole


def price(macs: Macs, taps: Sequence[int], looking: Sequence[int]) -> Price:
    leaving = np.array([macs.upto(tap + 1) + macs.head for tap in taps], float)
    return Price(leaving, np.array(looking, float), float(macs.whole))


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
    shares = 1 - np.linspace(0, 1, count) ** 1.5
    return np.unique(np.quantile(best, shares, method="higher"))[::-1]


def cheapest(given: Facing, price: Price, risk: float, count: int) -> tuple[int, ...]:
    """Of all sets of taps, the one that costs least where the mean loss of these documents is within `risk`."""
    every = range(given.score.shape[1])
    sets = [taps for size in every for taps in combinations(every, size + 1)]
    costs = {}
    for taps in sets:
        tried = grid(given.score[:, list(taps)], count)
        within = np.flatnonzero(losses(given, taps, tried)[0].mean(0) <= risk)
        threshold = float(tried[within[-1]]) if len(within) else None
        costs[taps] = price.of(left(given.score, taps, threshold), taps).mean()
    return min(costs, key=lambda taps: costs[taps])
