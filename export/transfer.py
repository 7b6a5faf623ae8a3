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


def sent(o: Ops, head: Head, name: str, states: Columns, told: Columns) -> tuple[Columns, Columns]:
    """By the codec `name`: the level of the size, and each combination's from the middle, not yet rounded."""
    low, high = numbers(head.span)
    now, root = o.norm(states, UNIT), math.sqrt(o.shape(states)[0])
    middle, step = (low + high) / 2, (high - low) / (SIZES - 1)
    size = o.reduce("sum", o.mul(o.mul(states, math.exp(-middle) / root), o.mul(now, 1 / root)))
    exact = o.mul(o.unary("log", o.binary("maximum", size, 1e-4)), 1 / step)
    half = (SIZES - 1) / 2
    level = o.binary("minimum", o.binary("maximum", o.add(exact, half), 0.0), 2 * half)
    level = o.round(level, f"size_{name}")
    unit = o.mul(now, o.unary("exp", o.mul(o.sub(exact, o.sub(level, half)), step)))
    analysis, expected = numbers(head.analysis.weight) / karhunen.WIDTH, numbers(head.expected.weight)
    both = np.concatenate([analysis, -analysis @ expected], axis=1)
    bent = o.unary("erf", o.conv(o.concat([unit, told]), both, -analysis @ numbers(head.expected.bias)))
    return level, o.mul(bent, np.array(head.config.levels) / 2)


def rounded(levels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """To levels that there are, N M: as the host does what is said here."""
    half = (counts - 1) / 2
    return np.clip(np.round(levels + half), 0, 2 * half) - half


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
