"""Intervals: a share (Wilson), a mean (percentile bootstrap), a paired ratio. Seeds are the caller's to name.

One entry an independent unit: a document, never its tokens; a run, never its steps.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
CHUNK = 250  # resamples drawn at once, so that memory stays small for many units


Values = Sequence[float] | np.ndarray


class Estimate(NamedTuple):
    value: float
    interval: tuple[float, float]


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Estimate:
    """A share and its Wilson score interval, honest at 0 and at all."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"a share needs 0 <= successes <= trials and a trial, got {successes} of {trials}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    middle = share + z * z / (2 * trials)
    half = z * (share * (1 - share) / trials + (z / (2 * trials)) ** 2) ** 0.5
    scale = 1 + z * z / trials
    # at the ends rounding would leave 1e-17 instead of the exact bound
    low = 0.0 if successes == 0 else (middle - half) / scale
    high = 1.0 if successes == trials else (middle + half) / scale
    return Estimate(share, (low, high))


def bootstrap_mean(sums: Values, seed: int, counts: Values | None = None, confidence: float = 0.95) -> Estimate:
    """The mean over units and its percentile interval; with `counts`, sum of sums over sum of counts (per token)."""
    total = finite("sums", sums)
    number = np.ones_like(total) if counts is None else finite("counts", counts)
    if total.shape != number.shape or not (number >= 0).all() or number.sum() == 0:
        raise ValueError(f"counts must be one non-negative number a unit, got {number.size} for {total.size} units")
    drawn = np.concatenate([total[pick].sum(1) / number[pick].sum(1) for pick in picks(total.size, seed)])
    return Estimate(float(total.sum() / number.sum()), percentiles(drawn, confidence))


def paired_ratio(ours: Values, theirs: Values, seed: int, confidence: float = 0.95) -> Estimate:
    """The median over pairs of ours / theirs, measured in turn under the same conditions, and its interval."""
    a, b = finite("ours", ours), finite("theirs", theirs)
    if a.shape != b.shape or not (b > 0).all():
        raise ValueError(f"pairs need equal numbers and theirs above 0, got {a.size} and {b.size}")
    ratios = a / b
    drawn = np.concatenate([np.median(ratios[pick], axis=1) for pick in picks(ratios.size, seed)])
    return Estimate(float(np.median(ratios)), percentiles(drawn, confidence))


def finite(name: str, values: Values) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a non-empty list of finite numbers")
    return array


def picks(units: int, seed: int):
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES // CHUNK):
        yield rng.integers(units, size=(CHUNK, units))


def percentiles(drawn: np.ndarray, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)
