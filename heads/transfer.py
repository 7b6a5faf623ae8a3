"""The transfer adapter: a state to a few bytes and back, so that blocks above still say what the teacher says.

What the token itself says of the state is taken off, for the receiver knows the token. Of what is left a few
combinations are sent, each as one of some levels, and the state's size beside them. It is for a sum of losses that the
combinations are chosen: by how much the receiver's next token suffers, not by how far the state is off.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from agp.losses import Sums
from heads import karhunen
from heads.codec import Codec, snapped

SIZES = 64  # levels of a state's size


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int  # values of a state, those of all streams
    told: int  # values of the vector that says which token stands there
    levels: tuple[int, ...]  # of each combination that is sent


class Head(nn.Module, Codec):
    def __init__(self, config: Config):
        super().__init__()
        count = len(config.levels)
        self.config = config
        self.expected = nn.Linear(config.told, config.width)
        self.analysis = nn.Linear(config.width, count, bias=False)
        self.synthesis = nn.Linear(count, config.width, bias=False)
        self.span = mx.array([-1.0, 1.0])  # logs of the smallest and the largest size
        self.freeze(keys=["span"], recurse=False)
        self._levels = mx.array([float(levels) for levels in config.levels])

    @property
    def digits(self) -> tuple[int, ...]:
        return (SIZES, *self.config.levels)

    def codes(self, states: mx.array, told: mx.array) -> mx.array:
        size, unit = self.divided(states)
        level = self.level(unit - self.expected(told)) + (self._levels - 1) / 2
        return mx.concatenate([size, level], axis=-1).astype(mx.int32)

    def restored(self, codes: mx.array, told: mx.array) -> mx.array:
        level = codes[..., 1:].astype(mx.float32) - (self._levels - 1) / 2
        return self.meant(codes[..., :1], level, self.expected(told))

    def __call__(self, states: mx.array, told: mx.array) -> mx.array:
        """The state as the receiver has it; its slope is that of a code without steps."""
        size, unit = self.divided(states)
        expected = self.expected(told)
        return self.meant(size, self.level(unit - expected), expected)

    def level(self, left: mx.array) -> mx.array:
        """Of each combination, counted from the middle."""
        found: Any = nearest(self.place(left), (self._levels - 1) / 2)
        return found

    def place(self, left: mx.array) -> mx.array:
        """Among the levels, which stand closer where more values are."""
        return mx.erf(self.analysis(left) / karhunen.WIDTH) * (self._levels / 2)

    def meant(self, size: mx.array, level: mx.array, expected: mx.array) -> mx.array:
        values = mx.erfinv(level / (self._levels / 2)) * karhunen.WIDTH
        return (expected + self.synthesis(values)) * self.size(size)

    def divided(self, states: mx.array) -> tuple[mx.array, mx.array]:
        """The level of the size, and the state by the size that it stands for: what was rounded off is not lost."""
        low, high = self.span
        states = states.astype(mx.float32)
        size = mx.log(mx.sqrt(mx.square(states).mean(-1, keepdims=True)) + 1e-30)
        level = mx.clip(mx.round((size - low) / (high - low) * (SIZES - 1)), 0, SIZES - 1)
        return level, states / self.size(level)

    def size(self, level: mx.array) -> mx.array:
        low, high = self.span
        return mx.exp(low + level * ((high - low) / (SIZES - 1)))


@mx.custom_function
def nearest(x: mx.array, half: mx.array) -> Any:
    return snapped(x, half)


@nearest.vjp
def _(primals, cotangent, output):
    """As if there were no steps."""
    return cotangent, mx.zeros_like(primals[1])


def loss(head: Head, states: mx.array, told: mx.array, root: mx.array) -> Sums:
    """The square of the error in the reader's metric, whose root is given, beside the size of the state."""
    size = mx.sqrt(mx.square(states).mean(-1, keepdims=True))
    wrong = (head(states, told) - states) / size @ root
    return mx.square(wrong).sum(), mx.array(float(len(states)))


def fitted(
    size: int, span: tuple[float, float], expected: np.ndarray, covariance: np.ndarray, root: np.ndarray
) -> Head:
    """In closed form, of `size` bytes. `expected` (1 + K, D) is what the token says of a state by its size, the first
    row without regard to it; `covariance` that of what is left."""
    basis = karhunen.basis(covariance, root)
    levels = karhunen.levels(basis.variance, 8 * size - float(np.log2(SIZES)))
    kept = levels > 1
    assert kept.any(), f"{size} bytes hold no state"
    given = levels[kept].tolist()
    scale, spread = np.array([karhunen.of(count)[0] for count in given]), np.sqrt(basis.variance[kept])
    head = Head(Config(width=len(covariance), told=len(expected) - 1, levels=tuple(given)))
    head.span = mx.array(span)
    head.expected.weight, head.expected.bias = real(expected[1:].T), real(expected[0])
    head.analysis.weight = real(basis.analysis[kept] / spread[:, None])
    head.synthesis.weight = real(basis.synthesis[:, kept] * scale * spread)
    return head


def real(x: np.ndarray) -> mx.array:
    return mx.array(x.astype(np.float32))
