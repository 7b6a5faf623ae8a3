"""Estimates over positions whose intervals count clusters: documents of one source text are not independent."""

from collections.abc import Callable

import numpy as np

from agp.stats import Estimate, bootstrap_mean, percentiles
from curricula.features import Features

RESAMPLES = 400

Statistic = Callable[[np.ndarray], float]  # of what each position weighs


def clusters(features: Features) -> np.ndarray:
    """Of each position: 0, 1, ... without gaps."""
    named = [document["cluster"] for document in features.documents]
    return np.unique(named, return_inverse=True)[1][features.document]


def mean(values: np.ndarray, cluster: np.ndarray, weights: np.ndarray | None = None) -> Estimate:
    """Of the positions, each as often as it weighs."""
    weights = np.ones(len(values)) if weights is None else weights.astype(float)
    sums, counts = (np.bincount(cluster, w) for w in (values * weights, weights))
    return bootstrap_mean(sums[counts > 0], 0, counts[counts > 0])


def auroc(score: np.ndarray, label: np.ndarray, weights: np.ndarray | None = None) -> float:
    """How often a true one scores above a false one, ties by half; nan without both."""
    return auroc_of(score, label)(np.ones(len(score)) if weights is None else weights)


def auroc_of(score: np.ndarray, label: np.ndarray) -> Statistic:
    _, level = np.unique(score, return_inverse=True)

    def of(weights: np.ndarray) -> float:
        true, false = (np.bincount(level, weights * who) for who in (label, ~label))
        below = np.cumsum(false) - false
        pairs = true.sum() * false.sum()
        return float((true * (below + false / 2)).sum() / pairs) if pairs else float("nan")

    return of


def coverage_area_of(score: np.ndarray, wrong: np.ndarray) -> Statistic:
    """The area under risk against coverage: of all shares that could be accepted, surest first, the mean wrong."""
    order = np.argsort(-score, kind="stable")
    missed = wrong[order]

    def of(weights: np.ndarray) -> float:
        w = weights[order]
        taken = np.cumsum(w)
        return float((np.cumsum(w * missed) / np.maximum(taken, 1e-12) * w).sum() / taken[-1])

    return of


def resampled(statistic: Statistic, cluster: np.ndarray, seed: int = 0, count: int = RESAMPLES) -> Estimate:
    """Of `statistic(weights)`, where clusters are drawn again and each position weighs as often as its own was."""
    rng, size = np.random.default_rng(seed), int(cluster.max()) + 1
    drawn = [statistic(np.bincount(rng.integers(size, size=size), minlength=size)[cluster]) for _ in range(count)]
    found = np.array([x for x in drawn if np.isfinite(x)])
    return Estimate(float(statistic(np.ones(len(cluster)))), percentiles(found, 0.95))
