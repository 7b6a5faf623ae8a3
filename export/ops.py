"""What heads are described in: arithmetic on columns, (1, C, 1, S), which are C numbers of each of S positions.

A description is a function that calls these. Called with `Plain` it computes, in double precision; called with those of
Core ML, Core AI or PyTorch it is a program there. What is no column is a weight, or a number.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Columns = Any  # of whatever world the operations belong to


class Ops(ABC):
    """The fewest that heads can be said in."""

    @abstractmethod
    def conv(self, x: Columns, weight: np.ndarray, bias: np.ndarray | None = None) -> Columns:
        """By a matrix, O I; or one of each of K positions, O I K, the last of which is where the result stands."""

    @abstractmethod
    def norm(self, x: Columns, eps: float) -> Columns:
        """To a mean square of one over channels."""

    @abstractmethod
    def gelu(self, x: Columns) -> Columns:
        """Its tanh form."""

    @abstractmethod
    def unary(self, name: str, x: Columns) -> Columns:
        """exp, log, tanh, erf or round."""

    @abstractmethod
    def binary(self, name: str, x: Columns, y: Columns | float | np.ndarray) -> Columns:
        """add, sub, mul, div, maximum or minimum; an array is of C numbers."""

    @abstractmethod
    def reduce(self, name: str, x: Columns) -> Columns:
        """max or sum over channels, of which one is left."""

    @abstractmethod
    def softmax(self, x: Columns) -> Columns:
        """Over channels."""

    @abstractmethod
    def match(self, keys: Columns, queries: Columns) -> Columns:
        """Their products: of C channels and K and S positions, K channels and S positions."""

    @abstractmethod
    def blend(self, values: Columns, shares: Columns) -> Columns:
        """Of C channels and K positions, and of K channels and S positions: C channels and S positions."""

    @abstractmethod
    def where(self, x: Columns, y: Columns | float | np.ndarray, a: Columns | float, b: Columns | float) -> Columns:
        """`a` where x >= y, else `b`; at least one of the two is columns."""

    @abstractmethod
    def concat(self, parts: list[Columns], along: int = 1) -> Columns:
        """Channels, or positions (3)."""

    @abstractmethod
    def cut(self, x: Columns, begin: int, end: int, along: int = 1) -> Columns:
        """Some of the channels, or of the positions."""

    @abstractmethod
    def shape(self, x: Columns) -> tuple[int, int]:
        """Channels and positions."""

    def round(self, x: Columns, of: str) -> Columns:
        """Halves to the even; `of` names what is decided."""
        return self.unary("round", x)

    def above(self, x: Columns, limits: np.ndarray, of: str) -> Columns:
        """1 where it is, else 0: what is decided by a threshold, and what that is called."""
        return self.where(self.mul(x, -1.0), -limits, 0.0, self.add(self.mul(x, 0.0), 1.0))

    def add(self, x: Columns, y: Any) -> Columns:
        return self.binary("add", x, y)

    def sub(self, x: Columns, y: Any) -> Columns:
        return self.binary("sub", x, y)

    def mul(self, x: Columns, y: Any) -> Columns:
        return self.binary("mul", x, y)

    def exp(self, x: Columns, less: Columns) -> Columns:
        """Of the difference."""
        return self.unary("exp", self.sub(x, less))

    def size(self, x: Columns, eps: float) -> tuple[Columns, float]:
        """Columns and a number, whose product is the root of the mean square over channels; no square is ever taken."""
        count = self.shape(x)[0]
        share = 2.0 ** -round(math.log2(count) / 2)
        total = self.reduce("sum", self.mul(self.mul(x, share), self.mul(self.norm(x, eps), share)))
        return total, 1 / (count * share**2)

    def softplus(self, x: Columns) -> Columns:
        """log(1 + exp(x)), of which nothing overflows."""
        small = self.unary("exp", self.mul(self.binary("maximum", x, self.mul(x, -1.0)), -1.0))
        return self.add(self.binary("maximum", x, 0.0), self.unary("log", self.add(small, 1.0)))

    def logsumexp(self, x: Columns) -> Columns:
        most = self.reduce("max", x)
        return self.add(most, self.unary("log", self.reduce("sum", self.exp(x, most))))


NUMPY = {"sub": "subtract", "mul": "multiply", "div": "divide"}


class Entry(NamedTuple):
    """A program to be: what it is given, and what it says of that."""

    inputs: Mapping[str, tuple[int, int]]  # channels and positions, by name
    describe: Callable[[Ops, Mapping[str, Columns]], Mapping[str, Columns]]


class Plain(Ops):
    """Numbers, by numpy."""

    def conv(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        weight = weight.astype(np.float64)
        taps = weight[..., None] if weight.ndim == 2 else weight
        count = x.shape[3] - taps.shape[2] + 1
        found = np.sum([taps[..., k] @ x[0, :, 0, k : k + count] for k in range(taps.shape[2])], axis=0)
        return (found if bias is None else found + bias[:, None])[None, :, None]

    def norm(self, x: np.ndarray, eps: float) -> np.ndarray:
        return x / np.sqrt(np.square(x).mean(1, keepdims=True) + eps)

    def gelu(self, x: np.ndarray) -> np.ndarray:
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def unary(self, name: str, x: np.ndarray) -> np.ndarray:
        return np.vectorize(math.erf)(x) if name == "erf" else getattr(np, name)(x)

    def binary(self, name: str, x: np.ndarray, y: Any) -> np.ndarray:
        return getattr(np, NUMPY.get(name, name))(x, column(y))

    def reduce(self, name: str, x: np.ndarray) -> np.ndarray:
        return getattr(np, name)(x, axis=1, keepdims=True)

    def softmax(self, x: np.ndarray) -> np.ndarray:
        weights = np.exp(x - x.max(1, keepdims=True))
        return weights / weights.sum(1, keepdims=True)

    def match(self, keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
        return (keys[0, :, 0].T @ queries[0, :, 0])[None, :, None]

    def blend(self, values: np.ndarray, shares: np.ndarray) -> np.ndarray:
        return (values[0, :, 0] @ shares[0, :, 0])[None, :, None]

    def where(self, x: np.ndarray, y: Any, a: Any, b: Any) -> np.ndarray:
        return np.where(x >= column(y), a, b)

    def concat(self, parts: list[np.ndarray], along: int = 1) -> np.ndarray:
        return np.concatenate(parts, axis=along)

    def cut(self, x: np.ndarray, begin: int, end: int, along: int = 1) -> np.ndarray:
        return x[:, begin:end] if along == 1 else x[..., begin:end]

    def shape(self, x: np.ndarray) -> tuple[int, int]:
        return x.shape[1], x.shape[3]


class Margins(Plain):
    """Numbers, and how near each decision was to the other, by what is decided: within a tie a rounding may turn it."""

    def __init__(self) -> None:
        self.found: dict[str, np.ndarray] = {}

    def above(self, x: np.ndarray, limits: np.ndarray, of: str) -> np.ndarray:
        self.note(of, np.abs(x - column(limits)))
        return super().above(x, limits, of)

    def round(self, x: np.ndarray, of: str) -> np.ndarray:
        self.note(of, 0.5 - np.abs(x - np.round(x)))
        return super().round(x, of)

    def note(self, of: str, far: np.ndarray) -> None:
        """What is decided several times is as near as it was once."""
        self.found[of] = np.minimum(self.found[of], far) if of in self.found else far


def numbers(x: Any) -> np.ndarray:
    """A weight, as it is described with."""
    return np.array(x, np.float64)


def column(y: Any) -> Any:
    """A weight of C numbers, as columns are."""
    return y[None, :, None, None] if isinstance(y, np.ndarray) and y.ndim == 1 else y
