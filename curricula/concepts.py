"""How well concepts are told apart, and where a score is high enough; intervals count clusters.

One draw of clusters serves all concepts, so the interval of their mean is that of one sample of documents.
"""

from typing import NamedTuple

import numpy as np

from agp.stats import Estimate, percentiles
from curricula.clustered import RESAMPLES

BLOCK = 1 << 22  # pairs compared at once


class Areas(NamedTuple):
    values: np.ndarray  # C: AUROC; nan without both
    drawn: np.ndarray  # draws C


def areas(scores: np.ndarray, true: np.ndarray, known: np.ndarray, cluster: np.ndarray, seed: int = 0) -> Areas:
    """Of each column, over positions where something is known of it."""
    size = int(cluster.max()) + 1
    rng = np.random.default_rng(seed)
    times = np.stack([np.bincount(rng.integers(size, size=size), minlength=size) for _ in range(RESAMPLES)])
    times = np.concatenate([np.ones((1, size)), times]).astype(np.float32)
    found = np.full((len(times), scores.shape[1]), np.nan)
    for c in range(scores.shape[1]):
        yes, no = (np.flatnonzero(known[:, c] & side) for side in (true[:, c], ~true[:, c]))
        if len(yes) and len(no):
            found[:, c] = area(scores[:, c], yes, no, cluster, times)
    return Areas(found[0], found[1:])


def area(score: np.ndarray, yes: np.ndarray, no: np.ndarray, cluster: np.ndarray, times: np.ndarray) -> np.ndarray:
    """For each draw: how often a true one scores above a false one, ties by half."""
    yes, no = (at[np.argsort(cluster[at], kind="stable")] for at in (yes, no))
    theirs, starts = np.unique(cluster[no], return_index=True)
    sums = np.zeros(len(times))
    for at in range(0, len(yes), max(1, BLOCK // len(no))):
        some = yes[at : at + max(1, BLOCK // len(no))]
        above = np.sign(score[some][:, None] - score[no]).astype(np.float32)
        by_cluster = np.add.reduceat(above, starts, axis=1)
        own, begins = np.unique(cluster[some], return_index=True)
        pairs = np.add.reduceat(by_cluster, begins, axis=0)
        sums += np.einsum("rp,rp->r", times[:, own] @ pairs, times[:, theirs])
    count = [times @ np.bincount(cluster[at], minlength=times.shape[1]) for at in (yes, no)]
    total = count[0] * count[1]
    return np.where(total > 0, 0.5 + 0.5 * sums / np.maximum(total, 1), np.nan)


def mean(found: Areas, which: np.ndarray) -> Estimate | None:
    """Over the concepts that were measured, and `which` says."""
    which = which & np.isfinite(found.values)
    if not which.any():
        return None
    drawn = found.drawn[:, which]
    counts = np.isfinite(drawn).sum(1)
    means = np.nansum(drawn, axis=1)[counts > 0] / counts[counts > 0]
    return Estimate(float(found.values[which].mean()), percentiles(means, 0.95))


def limit(score: np.ndarray, true: np.ndarray) -> float:
    """Above which to say that it holds, by the best F1; between two scores, so that none lies on it."""
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(true[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + true.sum())
    f1[:-1][np.diff(score[order]) == 0] = 0  # equal scores stay together
    at = int(np.argmax(f1))
    beyond = score[order[at + 1]] if at + 1 < len(order) else score[order[at]] - 1
    return float((score[order[at]] + beyond) / 2)
