"""exp and tanh of very many numbers. On a CPU MLX takes them one by one and numpy several at once: 20 times faster.

Numpy needs the numbers themselves: within `mx.compile`, where there are none yet, they are MLX's own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import mlx.core as mx
import numpy as np

from agp.fused import CPU

MANY = 1 << 14  # below, to leave MLX and come back takes longer

now = ContextVar("now", default=True)

Function = Callable[[mx.array], mx.array]


def by_numpy(x: mx.array) -> bool:
    return CPU and x.size >= MANY and now.get()


@contextmanager
def later() -> Iterator[None]:
    """By MLX alone. Numbers that are to be made again when they are due would all be there at once."""
    token = now.set(False)
    try:
        yield
    finally:
        now.reset(token)


def either(theirs: Callable[[np.ndarray], np.ndarray], ours: Function, slope: Function) -> Function:
    """`slope` is of what the function gives, which numpy does not tell MLX."""

    @mx.custom_function
    def taken(x: mx.array) -> mx.array:
        if not by_numpy(x):
            return ours(x)
        try:
            return mx.array(theirs(np.array(x, copy=False)))
        except ValueError:  # there are no numbers yet
            return ours(x)

    @taken.vjp
    def _(x, due, y):
        return due * slope(y)

    found: Any = taken
    return found


exp = either(np.exp, mx.exp, lambda y: y)
tanh = either(np.tanh, mx.tanh, lambda y: 1 - mx.square(y))
