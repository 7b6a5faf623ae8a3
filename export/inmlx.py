"""A description in MLX, where the decoder runs: the same arithmetic, to be timed beside the Neural Engine."""

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from export.ops import Columns, Entry, Ops, column

NAMES = {"sub": "subtract", "mul": "multiply", "div": "divide"}


class Mlx(Ops):
    def conv(self, x: Columns, weight: np.ndarray, bias: np.ndarray | None = None) -> Columns:
        taps = weight[..., None] if weight.ndim == 2 else weight
        count = x.shape[3] - taps.shape[2] + 1
        found: Any = sum(single(taps[..., k]) @ x[0, :, 0, k : k + count] for k in range(taps.shape[2]))
        found = found[None, :, None]
        return found if bias is None else found + single(bias)

    def norm(self, x: Columns, eps: float) -> Columns:
        return x * mx.rsqrt(mx.square(x).mean(1, keepdims=True) + eps)

    def gelu(self, x: Columns) -> Columns:
        return 0.5 * x * (1 + mx.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))

    def unary(self, name: str, x: Columns) -> Columns:
        return getattr(mx, name)(x)

    def binary(self, name: str, x: Columns, y: Any) -> Columns:
        return getattr(mx, NAMES.get(name, name))(x, single(y))

    def reduce(self, name: str, x: Columns) -> Columns:
        return getattr(mx, name)(x, axis=1, keepdims=True)

    def softmax(self, x: Columns) -> Columns:
        return mx.softmax(x, axis=1)

    def match(self, keys: Columns, queries: Columns) -> Columns:
        return (keys[0, :, 0].T @ queries[0, :, 0])[None, :, None]

    def blend(self, values: Columns, shares: Columns) -> Columns:
        return (values[0, :, 0] @ shares[0, :, 0])[None, :, None]

    def where(self, x: Columns, y: Any, a: Any, b: Any) -> Columns:
        return mx.where(x >= single(y), a, b)

    def concat(self, parts: list[Columns], along: int = 1) -> Columns:
        return mx.concatenate(parts, axis=along)

    def cut(self, x: Columns, begin: int, end: int, along: int = 1) -> Columns:
        return x[:, begin:end] if along == 1 else x[..., begin:end]

    def shape(self, x: Columns) -> tuple[int, int]:
        return x.shape[1], x.shape[3]


def single(y: Any) -> Any:
    return mx.array(column(y).astype(np.float32)) if isinstance(y, np.ndarray) else y


def compiled(entry: Entry) -> Callable[[Mapping[str, mx.array]], dict[str, mx.array]]:
    return mx.compile(lambda feed: dict(entry.describe(Mlx(), feed)))
