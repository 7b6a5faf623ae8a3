"""The transfer adapter's two halves as arithmetic on columns. The host rounds to levels, packs them, looks up values.

What is sent of the state's size is rounded here, for what is left of it goes into the levels.
"""

import math

import mlx.core as mx
import numpy as np

from export.ops import Columns, Ops, numbers
from heads import karhunen
from heads.trajectory import UNIT
from heads.transfer import SIZES, Head

OUTLYING = 32


def sent(o: Ops, head: Head, name: str, states: Columns, told: Columns) -> tuple[Columns, Columns]:
    """By the codec `name`: the level of the size, and each combination's from the middle, not yet rounded."""
    low, high = numbers(head.span)
    now = o.norm(states, UNIT)
    middle, step = (low + high) / 2, (high - low) / (SIZES - 1)
    total, by = o.size(states, UNIT)
    by, rest = rough(by * math.exp(-middle))
    size = o.unary("log", o.binary("maximum", o.mul(total, by), 1e-4))
    exact = o.mul(o.add(size, rest), 1 / step)
    half = (SIZES - 1) / 2
    level = o.binary("minimum", o.binary("maximum", o.add(exact, half), 0.0), 2 * half)
    level = o.round(level, f"size_{name}")
    unit = o.mul(now, o.unary("exp", o.mul(o.sub(exact, o.sub(level, half)), step)))
    analysis, expected = numbers(head.analysis.weight) / karhunen.WIDTH, numbers(head.expected.weight)
    both = np.concatenate([analysis, -analysis @ expected], axis=1)
    bent = o.unary("erf", o.conv(o.concat([unit, told]), both, -analysis @ numbers(head.expected.bias)))
    return level, o.mul(bent, np.array(head.config.levels) / 2)


def rough(x: float) -> tuple[float, float]:
    """As half precision has it, and the log of what that is off by: near the middle of two levels it counts."""
    near = float(np.float16(x))
    return near, math.log(x / near)


def rounded(levels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """To levels that there are, N M: as the host does what is said here."""
    half = (counts - 1) / 2
    return np.clip(np.round(levels + half), 0, 2 * half) - half


def ties(head: Head) -> np.ndarray:
    """How far, in levels, the rounding of a state may move each combination: the finer it is, the farther.

    So many times what a change of 2^-12 in every number of a state of unit size does in the middle of the curve: some
    numbers of a state are that much larger than others.
    """
    slope = np.array(head.config.levels) / (math.sqrt(math.pi) * karhunen.WIDTH)
    moved = np.linalg.norm(numbers(head.analysis.weight), axis=1) * slope * 2**-12
    return np.minimum(0.01 + OUTLYING * moved, 0.5)


def values(levels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """What levels from the middle stand for, likewise."""
    return karhunen.WIDTH * np.array(mx.erfinv(mx.array(levels / (counts / 2), mx.float32)), np.float64)


def size(level: np.ndarray, span: np.ndarray) -> np.ndarray:
    low, high = span
    return np.exp(low + level * ((high - low) / (SIZES - 1)))


def received(o: Ops, head: Head, size: Columns, values: Columns, told: Columns) -> Columns:
    """The state; `values` are what levels stand for, `size` what its level does."""
    both = np.concatenate([numbers(head.synthesis.weight), numbers(head.expected.weight)], axis=1)
    return o.mul(o.conv(o.concat([values, told]), both, numbers(head.expected.bias)), size)
