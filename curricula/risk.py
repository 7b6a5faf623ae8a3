"""Thresholds with a promise: the risk is at most `alpha` with probability 1 - `delta`, however documents are spread.

The unit is the document, for its tokens are not independent. A document's loss is the share of its tokens that left
early and differ from the teacher. Thresholds are tested from the strictest on, each by a bet against "the risk is above
alpha" whose capital could grow 1/delta-fold by luck with probability delta at most (Ville); the first bet that is not
won ends it, so no correction for their number is due.
"""

from typing import NamedTuple

import numpy as np


class Choice(NamedTuple):
    threshold: float | None  # leave where the score is at least this; None: nowhere
    risk: float  # mean loss on the documents it was chosen on
    leaving: float  # mean share of tokens that leave there


def won(loss: np.ndarray, alpha: float, delta: float) -> bool:
    """Whether a bet that the mean of losses in [0, 1] is below `alpha` multiplies its capital 1/delta-fold.

    The stake is what would have grown best with the mean and spread seen so far; it never looks ahead.
    """
    count = np.arange(1, len(loss) + 1)
    mean = (0.5 * alpha + np.cumsum(loss)) / (count + 1)
    spread = (0.25 * alpha + np.cumsum((loss - mean) ** 2)) / (count + 1)
    before = np.concatenate([[0.25 * alpha], spread[:-1]])
    gain = np.maximum(alpha - np.concatenate([[0.5 * alpha], mean[:-1]]), 0)
    stake = np.minimum(gain / (before + gain**2), 0.9 / (1 - alpha))
    return bool((np.cumsum(np.log1p(stake * (alpha - loss))) >= np.log(1 / delta)).any())


def choose(loss: np.ndarray, leaving: np.ndarray, grid: np.ndarray, alpha: float, delta: float, seed: int) -> Choice:
    """The laxest threshold before the first that is not certified; documents in a drawn order."""
    order = np.random.default_rng(seed).permutation(len(loss))
    kept = None
    for at in range(len(grid)):
        if not won(loss[order, at], alpha, delta):
            break
        kept = at
    if kept is None:
        return Choice(None, 0.0, 0.0)
    return Choice(float(grid[kept]), float(loss[:, kept].mean()), float(leaving[:, kept].mean()))


def violations(
    loss: np.ndarray,
    leaving: np.ndarray,
    grid: np.ndarray,
    alpha: float,
    delta: float,
    *,
    size: int,
    resplits: int = 200,
) -> float:
    """The share of resplits by document whose threshold has a risk above `alpha` over the whole pool."""
    pool = loss.mean(0)
    broken = 0
    for seed in range(resplits):
        drawn = np.random.default_rng([seed, 1]).choice(len(loss), size, replace=False)
        chosen = choose(loss[drawn], leaving[drawn], grid, alpha, delta, seed)
        broken += chosen.threshold is not None and pool[np.flatnonzero(grid == chosen.threshold)[0]] > alpha
    return broken / resplits
