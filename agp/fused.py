"""Norms and rotations: one kernel each on a GPU. On a CPU MLX makes ten to twenty small ops of them, here it is three.

Launching an op costs more there than running it on a few positions, and the angles are the same for every block. Of a
few positions the numbers are those of `mx.fast`, bit for bit; of many, norms are nearer to the truth. What is compiled
here is so for all shapes at once.
"""

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from agp.models.layout import positive
from agp.models.tensors import shown

CPU = mx.default_device() == mx.cpu
FEW = 8  # positions, such as drafts that are checked together

Angles = tuple[mx.array, mx.array]  # cosines and sines, L K/2; or B 1 L K/2, where each row has places of its own
Start = int | mx.array  # the first position, of all rows; or all positions of each, B L


class RMSNorm(nn.RMSNorm):
    def __call__(self, x: mx.array) -> mx.array:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    if not CPU:
        return mx.fast.rms_norm(x, weight, eps)
    exact = x.astype(mx.float32)
    if x.shape[1] > FEW:
        found: Any = unit(exact, *scalars(x.shape[-1], eps))
        return found[0].astype(x.dtype) * (1 if weight is None else weight)
    total = mx.sum(exact * exact, axis=-1, keepdims=True)
    return normed(x, total, *scalars(x.shape[-1], eps), mx.array(1, x.dtype) if weight is None else weight)


@mx.custom_function
def unit(x: mx.array, share: mx.array, eps: mx.array) -> Any:
    """Mean square one. MLX on a CPU would add the squares one after another, with several times the error of BLAS."""
    scale = mx.rsqrt(dot(x, x) * share + eps)
    return x * scale, scale


@unit.vjp
def _(primals, cotangents, outputs):
    (_, share, eps), (y, scale), slope = primals, outputs, cotangents[0]
    return (slope - y * (dot(slope, y) * share)) * scale, mx.zeros_like(share), mx.zeros_like(eps)


def dot(a: mx.array, b: mx.array) -> mx.array:
    return (a * b) @ mx.ones((a.shape[-1], 1))


@partial(mx.compile, shapeless=True)
def normed(x: mx.array, total: mx.array, share: mx.array, eps: mx.array, weight: mx.array) -> mx.array:
    return (x.astype(mx.float32) * mx.rsqrt(total * share + eps)).astype(x.dtype) * weight


@lru_cache
def scalars(width: int, eps: float) -> tuple[mx.array, mx.array]:
    """As arrays, or each number would be compiled in."""
    return mx.array(1 / width), mx.array(eps)


class Rope:
    """Turns queries and keys by their positions, B H L K. Ropes with the same `name` turn alike."""

    def __init__(self, head_dim: int, how: Mapping[str, Any]):
        self.name = f"{head_dim} {sorted(how.items())}"
        self.head_dim, self.wavelengths = head_dim, wavelengths(head_dim, how)

    def __call__(self, x: mx.array, start: Start, known: dict[tuple[str, int], Angles]) -> mx.array:
        """`known` holds the angles of this chunk of tokens, for all blocks."""
        if not CPU:
            return self.turn(x, start) if isinstance(start, int) else self.scattered(x, start)
        ask = (self.name, x.shape[2])
        if ask not in known:
            known[ask] = self.angles(start, x.shape[2])
        a, b = mx.split(x, 2, axis=-1)
        return mx.concatenate([*turned(a, b, *known[ask])], axis=-1)

    def scattered(self, x: mx.array, start: mx.array) -> mx.array:
        """Each position as a row of its own."""
        rows, heads, length, width = x.shape
        alone = x.swapaxes(1, 2).reshape(rows * length, heads, 1, width)
        return self.turn(alone, start.reshape(-1)).reshape(rows, length, heads, width).swapaxes(1, 2)

    def turn(self, x: mx.array, start: Start) -> mx.array:
        how = {"traditional": False, "base": None, "scale": 1.0, "offset": start, "freqs": self.wavelengths}
        return mx.fast.rope(x, self.head_dim, **how)

    def angles(self, start: Start, length: int) -> Angles:
        """What becomes of (1, 0) is (cos, sin), whichever rope this is."""
        unit = mx.repeat(mx.array([1.0, 0.0]), self.head_dim // 2)
        if isinstance(start, int):
            found = self.turn(mx.broadcast_to(unit, (1, 1, length, self.head_dim)), start)[0, 0]
        else:
            found = self.scattered(mx.broadcast_to(unit, (len(start), 1, length, self.head_dim)), start)
        cos, sin = mx.split(found, 2, axis=-1)
        return cos, sin


def wavelengths(head_dim: int, how: Mapping[str, Any]) -> mx.array:
    """Positions to a radian for each pair of a head; pairs that do not turn have infinitely many."""
    kind, known = how.get("rope_type", "default"), ("default", "linear", "proportional")
    theta, factor, part = how["rope_theta"], how.get("factor", 1.0), how.get("partial_rotary_factor", 1.0)
    wrong = [] if kind in known else [f"rope_type is {shown(kind)}; Gemma's are {', '.join(known)}"]
    for name, value in (("rope_theta", theta), ("factor", factor)):
        wrong += [] if positive(value) else [f"{name} is {shown(value)}; a number between 1e-18 and 1e18 is needed"]
    if type(part) not in (int, float) or not 0 <= part <= 1:
        wrong.append(f"partial_rotary_factor is {shown(part)}; a number from 0 to 1 is needed")
    if kind == "default" and factor != 1:
        wrong.append(f"factor is {shown(factor)}, without effect where rope_type is 'default'")
    if wrong:
        raise ValueError(f"config.json: {'; '.join(wrong)}")
    pairs = head_dim // 2
    turning = int(part * pairs) if kind == "proportional" else pairs
    found = factor * theta ** (np.arange(pairs) * 2 / head_dim)
    return mx.array(np.where(np.arange(pairs) < turning, found, np.inf), mx.float32)


@partial(mx.compile, shapeless=True)
def turned(a: mx.array, b: mx.array, cos: mx.array, sin: mx.array) -> Angles:
    return (a * cos - b * sin).astype(a.dtype), (b * cos + a * sin).astype(a.dtype)
