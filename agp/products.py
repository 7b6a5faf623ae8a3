"""Products of a few positions with a large matrix: on some CPUs in pieces, which OpenBLAS takes as they lie.

It copies what it multiplies into an order of its own, which for a few rows costs more than the product; and for one row
alone it reads at half the speed of memory. Small products its kernels for AVX-512 take uncopied, but one thread takes
them: where there are more, several rows are faster whole.
"""

from functools import lru_cache

import mlx.core as mx
import mlx.nn as nn

from agp import blas
from agp.fused import CPU, FEW

MOST = (FEW if blas.threads() == 1 else 1) if CPU and blas.uncopied() else 0  # rows that are taken in pieces
SMALL = 1_000_000  # multiplications
LEAST = 16  # rows of a matrix that are worth a call


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
    if (count := pieces(rows, height, width)) == 1:
        return x @ weight.T
    parts = mx.unflatten(weight, 0, (count, -1)).swapaxes(1, 2)
    return (x.reshape(1, rows, width) @ parts).swapaxes(0, 1).reshape(*x.shape[:-1], height)


@lru_cache
def pieces(rows: int, height: int, width: int) -> int:
    """The fewest that are equal and small; one where there are none."""
    if rows * height * width <= SMALL:
        return 1
    fit = (count for count in range(2, height // LEAST + 1) if height % count == 0)
    return next((count for count in fit if rows * (height // count) * width <= SMALL), 1)
