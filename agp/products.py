"""Products of a few positions with a large matrix: on some CPUs in pieces, which OpenBLAS takes as they lie.

It copies what it multiplies into an order of its own, which for a few rows costs more than the product; and for one row
alone it reads at half the speed of memory. Small products its kernels for AVX-512 take uncopied, but one thread takes
them: where there are two, a large matrix is halved, and a second stream takes the other half. Where there are more,
which nobody has measured, several rows stay whole.
"""

import threading
from functools import cached_property, lru_cache

import mlx.core as mx
import mlx.nn as nn

from agp import blas
from agp.fused import CPU, FEW

MOST = FEW if CPU and blas.uncopied() else 0  # rows that are taken in pieces
THREADS = blas.threads() if MOST else 0  # who has no OpenBLAS cannot ask it
HALVED = THREADS == 2
ALONE = FEW if THREADS == 1 else 1  # rows that one thread takes in pieces; where there are more they are faster whole
SMALL = 1_000_000  # multiplications
LARGE = 500_000  # numbers of a matrix that is worth a second stream
LEAST = 16  # rows of a matrix that are worth a call


class Beside(threading.local):
    """Of every thread the stream that its own one shares work with."""

    @cached_property
    def stream(self) -> mx.Stream:
        return mx.new_stream(mx.cpu)


beside = Beside()


class Linear(nn.Linear):
    def __call__(self, x: mx.array) -> mx.array:
        y = times(x, self.weight)
        return y + self.bias if "bias" in self else y


class Embedding(nn.Embedding):
    def as_linear(self, x: mx.array) -> mx.array:
        return times(x, self.weight)


def times(x: mx.array, weight: mx.array) -> mx.array:
    """... K by N K."""
    rows, (height, width) = x.size // x.shape[-1], weight.shape
    if rows > MOST or not x.dtype == weight.dtype == mx.float32:
        return x @ weight.T
    half = height // 2
    if HALVED and height * width >= LARGE and fits(rows, half, width) and fits(rows, height - half, width):
        other = cut(x, weight[half:], beside.stream)
        return mx.concatenate([cut(x, weight[:half]), other], axis=-1)
    return x @ weight.T if rows > ALONE else cut(x, weight)


def cut(x: mx.array, weight: mx.array, stream: mx.Stream | None = None) -> mx.array:
    rows, (height, width) = x.size // x.shape[-1], weight.shape
    if (count := pieces(rows, height, width)) == 1:
        return mx.matmul(x, weight.T, stream=stream)
    parts = mx.unflatten(weight, 0, (count, -1)).swapaxes(1, 2)
    found = mx.matmul(x.reshape(1, rows, width), parts, stream=stream)
    return found.swapaxes(0, 1).reshape(*x.shape[:-1], height)


def fits(rows: int, height: int, width: int) -> bool:
    """Whether no call of it is so large that OpenBLAS would use both threads."""
    return rows * height * width <= SMALL or pieces(rows, height, width) > 1


@lru_cache
def pieces(rows: int, height: int, width: int) -> int:
    """The fewest that are equal and small; one where there are none."""
    if rows * height * width <= SMALL:
        return 1
    fit = (count for count in range(2, height // LEAST + 1) if height % count == 0)
    return next((count for count in fit if rows * (height // count) * width <= SMALL), 1)
