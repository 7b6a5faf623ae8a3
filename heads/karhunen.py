"""A linear code in closed form: coefficients that are uncorrelated in the reader's own metric, levels where they help.

The metric says by how much an error of the state changes what is read from it. The number of levels is fixed, so a
payload always has the same length; they stand as close as the cube root of the density asks (Panter and Dite).
"""

import math
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

WIDTH = 6**0.5  # of the curve: its slope is the cube root of a normal density
MOST = 256  # levels of a coefficient
SLACK = 1e-6  # bits left free, for sums of logarithms are rounded


class Basis(NamedTuple):
    variance: np.ndarray  # of each coefficient, falling
    analysis: np.ndarray  # M D
    synthesis: np.ndarray  # D M, its inverse


def root(metric: np.ndarray, floor: float) -> np.ndarray:
    """The symmetric square root; directions that seem to matter to nobody count `floor` times the mean."""
    share, axes = np.linalg.eigh(metric)
    share = np.maximum(share, 0)
    return (axes * np.sqrt(share + floor * share.mean() + 1e-30)) @ axes.T


def basis(covariance: np.ndarray, root: np.ndarray) -> Basis:
    variance, axes = np.linalg.eigh(root @ covariance @ root)
    axes = axes[:, ::-1]
    return Basis(np.maximum(variance[::-1], 0), axes.T @ root, np.linalg.solve(root, axes))


def levels(variance: np.ndarray, bits: float) -> np.ndarray:
    """How many each coefficient gets: again and again one more where it takes most off the error for a bit."""
    left = bits - SLACK
    found, error = np.ones(len(variance), int), np.array([1.0, *(of(count)[1] for count in range(2, MOST + 1)), np.inf])
    price = np.log2(np.arange(2, MOST + 2) / np.arange(1, MOST + 1))
    gain = variance * (error[0] - error[1]) / price[0]
    while True:
        gain[price[found - 1] > left] = 0
        best = int(np.argmax(gain))
        if not gain[best] > 0:
            return found
        left -= price[found[best] - 1]
        found[best] += 1
        now = found[best]
        gain[best] = variance[best] * (error[now - 1] - error[now]) / price[now - 1]


@cache
def of(count: int) -> tuple[float, float]:
    """What to multiply by the values that so many levels stand for, and the error that is left: of a normal
    distribution of variance 1, `bent` before it is rounded."""
    half, values = (count - 1) / 2, normal()
    level = np.clip(np.round(bent() * count / 2 + half), 0, count - 1).astype(int)
    stands = np.array([straight((2 * i - count + 1) / count) for i in range(count)])[level]
    scale = float((values * stands).mean() / np.square(stands).mean())
    return scale, float(np.square(values - scale * stands).mean())


@cache
def normal(count: int = 4001) -> np.ndarray:
    """Values as they are spread."""
    given = NormalDist()
    return np.array([given.inv_cdf((i + 0.5) / count) for i in range(count)])


@cache
def bent() -> np.ndarray:
    return np.array([math.erf(x / WIDTH) for x in normal()])


def straight(x: float) -> float:
    """What was bent to this."""
    return WIDTH * NormalDist(sigma=0.5**0.5).inv_cdf((1 + x) / 2)
