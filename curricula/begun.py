"""Codes in closed form, with which training begins: from the means of products of states and of what tokens say."""

from typing import Any

import mlx.core as mx
import numpy as np

from agp.hosts import totalled
from curricula.exchange import ranked
from curricula.onward import Onward
from heads import transfer
from heads.codec import HEADER, PACKET

CHUNK = 4096  # positions at once


class Begun:
    """States are by their size; each host reads its share of them."""

    def __init__(self, given: Onward, root: np.ndarray, ridge: float, group: Any):
        products = summed(given, group) / given.features.count
        self.width, self.root = len(root), root
        known = len(products) - self.width  # 1, and a token's vector
        self.own, self.cross, self.state = products[:known, :known], products[:known, known:], products[known:, known:]
        ease = ridge * np.trace(self.own[1:, 1:]) / (known - 1) * np.eye(known)
        ease[0, 0] = 0
        self.expected = np.linalg.solve(self.own + ease, self.cross)
        sizes = np.log(given.sizes())
        self.span = (float(sizes.min()), float(max(sizes.max(), sizes.min() + 1e-3)))

    def bytes(self, ratio: int) -> int:
        return room(self.width, ratio)

    def head(self, size: int, *, told: bool = True, sensed: bool = True) -> transfer.Head:
        """Of so many bytes. Not told the token and without a sense of what matters, it is what is known as PCA with bit
        allocation."""
        expected = self.expected
        if not told:
            expected = np.zeros_like(self.expected)
            expected[0] = self.cross[0]
        both = expected.T @ self.cross
        left = self.state - both - both.T + expected.T @ self.own @ expected
        return transfer.fitted(size, self.span, expected, left, self.root if sensed else np.eye(self.width))


def room(width: int, ratio: int) -> int:
    """Bytes of a state, so that its share of the header fits as well."""
    return int(2 * width / ratio - HEADER / PACKET)


def summed(given: Onward, group: Any) -> np.ndarray:
    """Products of 1, the vector of the token, and the state by its size."""
    rank, size = ranked(group)
    size_of_all = 1 + given.told(np.arange(1)).shape[1] + given.width
    total = np.zeros((size_of_all, size_of_all))
    for begin in range(0, given.features.count, CHUNK)[rank::size]:
        at = np.arange(begin, min(begin + CHUNK, given.features.count))
        states, told = given.states(at), given.told(at)
        unit = states / mx.sqrt(mx.square(states).mean(-1, keepdims=True))
        both = mx.concatenate([mx.ones((len(at), 1)), told, unit], axis=-1)
        total = total + np.array(both.T @ both).astype(float)
    return totalled(group, total)
