"""Core AI's operations, and an asset of a description: columns are its values, all of single precision."""

import math
from collections.abc import Mapping
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import coreai.authoring as ca
import numpy as np
from coreai.authoring.constant import constant

from export.ops import Columns, Entry, Ops, Plain, column

SINGLE = np.float32
BINARY = {
    **{"add": ca.broadcasting_add, "sub": ca.broadcasting_sub, "mul": ca.broadcasting_mul},
    **{"div": ca.broadcasting_divide, "maximum": ca.broadcasting_maximum, "minimum": ca.broadcasting_minimum},
}
UNARY = {"exp": ca.exp, "log": ca.log, "tanh": ca.tanh, "erf": ca.erf, "round": ca.round_}
REDUCE = {"max": ca.reduce_max, "sum": ca.reduce_sum}


class Authored(Ops):
    def __init__(self) -> None:
        self.kept: dict[int, tuple[np.ndarray, Columns]] = {}  # a matrix that is used again is stored once

    def conv(self, x: Columns, weight: np.ndarray, bias: np.ndarray | None = None) -> Columns:
        _, kernel = self.kept.get(id(weight)) or self.kept.setdefault(id(weight), (weight, stored(weight)))
        found = ca.conv2d(x, kernel, whole(1, 1), whole(1, 1), np.array(1, np.int32))
        return found if bias is None else self.add(found, bias)

    def norm(self, x: Columns, eps: float) -> Columns:
        square = self.mul(self.reduce("sum", self.mul(x, x)), 1 / self.shape(x)[0])
        return self.mul(x, ca.rsqrt(self.add(square, eps)))

    def gelu(self, x: Columns) -> Columns:
        return ca.gelu(x, approximate="tanh")

    def unary(self, name: str, x: Columns) -> Columns:
        return UNARY[name](x)

    def binary(self, name: str, x: Columns, y: Any) -> Columns:
        return BINARY[name](x, single(y))

    def reduce(self, name: str, x: Columns) -> Columns:
        """In two steps, for numbers are added one after the other: of a long row the end would be lost."""
        channels, count = self.shape(x)
        part = max(n for n in range(1, math.isqrt(channels) + 1) if channels % n == 0)
        rows = ca.reshape(x, whole(1, part, channels // part, count))
        return REDUCE[name](REDUCE[name](rows, whole(2)), whole(1))

    def softmax(self, x: Columns) -> Columns:
        return ca.softmax(x, np.array(1, np.int32))

    def match(self, keys: Columns, queries: Columns) -> Columns:
        return self.product(keys, queries, (0, 2, 3, 1))

    def blend(self, values: Columns, shares: Columns) -> Columns:
        return self.product(values, shares)

    def product(self, x: Columns, y: Columns, order: tuple[int, ...] = (0, 2, 1, 3)) -> Columns:
        """Of matrices of channels by positions; `order` is that of the first."""
        told = lambda of: np.array(of, np.uint32)  # the library ends the process over two signed ones in a row
        usual = told((0, 2, 1, 3))
        found = ca.broadcasting_batch_matmul(ca.transpose(x, told(order)), ca.transpose(y, usual))
        return ca.transpose(found, usual)

    def where(self, x: Columns, y: Any, a: Any, b: Any) -> Columns:
        """Of comparisons it has `greater`: the other is taken where y > x."""
        return ca.broadcasting_where(ca.broadcasting_greater(single(y), x), single(b), single(a))

    def concat(self, parts: list[Columns], along: int = 1) -> Columns:
        return ca.concat(np.array(along, np.int32), parts)

    def cut(self, x: Columns, begin: int, end: int, along: int = 1) -> Columns:
        first, last = [0, 0, 0, 0], list(x.type.shape)
        first[along], last[along] = begin, end
        return ca.slice_(x, whole(*first), whole(*last), whole(1, 1, 1, 1))

    def shape(self, x: Columns) -> tuple[int, int]:
        return x.type.shape[1], x.type.shape[3]


def stored(weight: np.ndarray) -> Columns:
    return constant(single(weight.reshape(*weight.shape[:2], 1, -1)))


def single(y: Any) -> Any:
    """A weight or a number as it is stored; values are left alone."""
    return np.ascontiguousarray(column(y), SINGLE) if isinstance(y, float | np.ndarray) else y


def whole(*of: int) -> np.ndarray:
    return np.array(of, np.int32)


def save(out: Path, entries: Mapping[str, Entry]) -> None:
    """An asset with these entries."""
    module: Any = ca.Module.create()
    with module:
        for name, entry in entries.items():
            ca.graph(authored(entry), provided_name=name)
    ca.AIProgram(module).save_asset(out)


def authored(entry: Entry) -> Any:
    """A function as `graph` wants it: what it takes and gives stands in its signature."""
    given = {name: np.zeros((1, channels, 1, count)) for name, (channels, count) in entry.inputs.items()}
    with np.errstate(all="ignore"):
        said = entry.describe(Plain(), given)

    def describe(*values: Columns) -> tuple[Columns, ...]:
        found = entry.describe(Authored(), dict(zip(given, values, strict=True)))
        return tuple(found[name] for name in said)

    each = {name: Annotated[ca.Value, ca.TensorSpec(x.shape, SINGLE)] for name, x in given.items()}
    results = [Annotated[ca.Value, ca.TensorSpec(x.shape, SINGLE, name=name)] for name, x in said.items()]
    describe.__annotations__ = each | {"return": tuple[*results]}
    describe.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in given])  # type: ignore[attr-defined]
    return describe
