"""Core ML's operations, and a package of a description: columns are its variables, all of half precision."""

from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder
from coremltools.converters.mil.mil import Function, Program, types
from coremltools.models.utils import MultiFunctionDescriptor, save_multifunction

from export.ops import Columns, Ops, column

mb: Any = Builder  # its operations are added to it as it is imported
HALF, TARGET = np.float16, ct.target.macOS15
Describe = Callable[[Ops, Mapping[str, Columns]], Mapping[str, Columns]]  # inputs to outputs, by name
PASSES = [  # a description is as it should be, but for what is said twice: the usual hundred take twenty times as long
    "common::const_deduplication",
    "common::merge_consecutive_transposes",
    "common::fuse_transpose_matmul",
    "common::remove_redundant_ops",
    "common::dead_code_elimination",
]
BINARY = {
    **{"add": mb.add, "sub": mb.sub, "mul": mb.mul, "div": mb.real_div},
    **{"maximum": mb.maximum, "minimum": mb.minimum},
}
UNARY = {"exp": mb.exp, "tanh": mb.tanh, "erf": mb.erf, "round": mb.round}


class Mil(Ops):
    def conv(self, x: Columns, weight: np.ndarray, bias: np.ndarray | None = None) -> Columns:
        kernel = weight.reshape(*weight.shape[:2], 1, -1).astype(HALF)
        more = {} if bias is None else {"bias": bias.astype(HALF)}
        return mb.conv(x=x, weight=kernel, pad_type="valid", **more)

    def norm(self, x: Columns, eps: float) -> Columns:
        """As a layer norm of the numbers and their opposites, whose mean is zero: its sums are wide, and a row of zeros
        stays one."""
        both = mb.concat(values=[x, mb.mul(x=x, y=HALF(-1))], axis=1)
        return self.cut(mb.layer_norm(x=both, axes=[1], epsilon=HALF(eps)), 0, x.shape[1])

    def gelu(self, x: Columns) -> Columns:
        return mb.gelu(x=x, mode="TANH_APPROXIMATION")

    def unary(self, name: str, x: Columns) -> Columns:
        return mb.log(x=x, epsilon=HALF(0)) if name == "log" else UNARY[name](x=x)

    def binary(self, name: str, x: Columns, y: Any) -> Columns:
        return BINARY[name](x=x, y=half(y))

    def reduce(self, name: str, x: Columns) -> Columns:
        return {"max": mb.reduce_max, "sum": mb.reduce_sum}[name](x=x, axes=[1], keep_dims=True)

    def softmax(self, x: Columns) -> Columns:
        return mb.softmax(x=x, axis=1)

    def match(self, keys: Columns, queries: Columns) -> Columns:
        return self.product(keys, queries, transpose_x=True)

    def blend(self, values: Columns, shares: Columns) -> Columns:
        return self.product(values, shares)

    def product(self, x: Columns, y: Columns, **how: bool) -> Columns:
        """Of matrices of channels by positions."""
        x, y = (mb.transpose(x=of, perm=[0, 2, 1, 3]) for of in (x, y))
        return mb.transpose(x=mb.matmul(x=x, y=y, **how), perm=[0, 2, 1, 3])

    def where(self, x: Columns, y: Any, a: Any, b: Any) -> Columns:
        return mb.select(cond=mb.greater_equal(x=x, y=half(y)), a=half(a), b=half(b))

    def concat(self, parts: list[Columns], along: int = 1) -> Columns:
        return mb.concat(values=parts, axis=along)

    def cut(self, x: Columns, begin: int, end: int, along: int = 1) -> Columns:
        first, last = [0, 0, 0, 0], list(x.shape)
        first[along], last[along] = begin, end
        return mb.slice_by_index(x=x, begin=first, end=last)

    def shape(self, x: Columns) -> tuple[int, int]:
        return x.shape[1], x.shape[3]


def save(out: Path, entries: Mapping[str, tuple[Mapping[str, tuple[int, int]], Describe]], main: str) -> None:
    """A package with these entries, of inputs of so many channels and positions; equal weights are stored once."""
    with TemporaryDirectory() as folder:
        found = MultiFunctionDescriptor()
        for name, (inputs, describe) in entries.items():
            place = str(Path(folder) / f"{name}.mlpackage")
            with redirect_stderr(StringIO()):  # bars of its own
                converted(inputs, describe).save(place)
            found.add_function(place, "main", name)
        found.default_function_name = main
        with redirect_stderr(StringIO()):
            save_multifunction(found, str(out))


def converted(inputs: Mapping[str, tuple[int, int]], describe: Describe) -> Any:
    given = {
        name: mb.TensorSpec((1, channels, 1, count), dtype=types.fp16) for name, (channels, count) in inputs.items()
    }
    program = Program()
    with Function(given, opset_version=TARGET) as function:
        said = describe(Mil(), function.inputs)
        function.set_outputs([mb.identity(x=of, name=name) for name, of in said.items()])
    program.add_function("main", function)
    return ct.convert(
        program,
        minimum_deployment_target=TARGET,
        compute_precision=ct.precision.FLOAT16,
        compute_units=ct.ComputeUnit.CPU_AND_NE,
        pass_pipeline=ct.PassPipeline(PASSES, "heads"),
        skip_model_load=True,
    )


def half(y: Any) -> Any:
    return column(y).astype(HALF) if isinstance(y, np.ndarray) else HALF(y) if isinstance(y, float) else y
