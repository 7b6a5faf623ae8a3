"""Core ML's operations, and a package of a description: columns are its variables, all of half precision."""

from collections.abc import Mapping
from contextlib import redirect_stderr
from hashlib import sha256
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder
from coremltools.converters.mil.mil import Function, Program, types
from coremltools.models.utils import MultiFunctionDescriptor, save_multifunction
from coremltools.proto import Model_pb2
from google.protobuf.message import DecodeError

from export import blob
from export.compress import KINDS, Smaller
from export.ops import Columns, Entry, Ops, column

mb: Any = Builder  # its operations are added to it as it is imported
HALF, TARGET, MOST = np.float16, ct.target.macOS15, 65504.0
MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
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
    def __init__(self, smaller: Smaller | None = None) -> None:
        self.weights: set[str] = set()  # digests of all arrays that were handed over
        self.smaller = smaller
        self.kept: dict[int, tuple[np.ndarray, Any]] = {}  # a matrix that is used again is stored once

    def conv(self, x: Columns, weight: np.ndarray, bias: np.ndarray | None = None) -> Columns:
        _, kernel = self.kept.get(id(weight)) or self.kept.setdefault(id(weight), (weight, self.kernel(weight)))
        more = {} if bias is None else {"bias": self.half(bias).reshape(-1)}
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
        return BINARY[name](x=x, y=self.half(y))

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
        return mb.select(cond=mb.greater_equal(x=x, y=self.half(y)), a=self.half(a), b=self.half(b))

    def concat(self, parts: list[Columns], along: int = 1) -> Columns:
        return mb.concat(values=parts, axis=along)

    def cut(self, x: Columns, begin: int, end: int, along: int = 1) -> Columns:
        first, last = [0, 0, 0, 0], list(x.shape)
        first[along], last[along] = begin, end
        return mb.slice_by_index(x=x, begin=first, end=last)

    def shape(self, x: Columns) -> tuple[int, int]:
        return x.shape[1], x.shape[3]

    def half(self, y: Any) -> Any:
        """A weight or a number as it is stored; columns are left alone."""
        if isinstance(y, float):
            return HALF(y)
        return self.told(held(column(y) if y.ndim == 1 else y)) if isinstance(y, np.ndarray) else y

    def kernel(self, weight: np.ndarray) -> Any:
        """Where it is large enough to gain by it, in fewer bits."""
        stored = held(weight.reshape(*weight.shape[:2], 1, -1))
        if self.smaller is None or not self.smaller.takes(stored):
            return mb.const(val=self.told(stored))
        less = KINDS[self.smaller.kind](stored)
        for part in less.parts:
            self.told(part)
        return less.variable

    def told(self, stored: np.ndarray) -> np.ndarray:
        self.weights.add(sha256(stored.tobytes()).hexdigest())
        return stored


def held(y: np.ndarray) -> np.ndarray:
    """In half precision; what that cannot hold is refused."""
    if not (np.abs(y) <= MOST).all():
        worst = y.flat[np.abs(y).argmax()]
        raise ValueError(f"a weight {y.shape} holds {worst:.4g}; half precision holds {MOST:,.0f} at most")
    return y.astype(HALF)


def save(out: Path, entries: Mapping[str, Entry], main: str, smaller: Smaller | None = None) -> set[str]:
    """A package with these entries; equal weights are stored once. Digests of all weights that were handed over."""
    weights: set[str] = set()
    with TemporaryDirectory() as folder, redirect_stderr(StringIO()):  # bars of its own
        found = MultiFunctionDescriptor()
        for name, entry in entries.items():
            program, kept = built(entry, smaller)
            place = str(Path(folder) / f"{name}.mlpackage")
            converted(program).save(place)
            found.add_function(place, "main", name)
            weights |= kept
        found.default_function_name = main
        save_multifunction(found, str(out))
    readable(out)
    return weights


def readable(package: Path) -> None:
    """By whoever may read the folder it lies in: what is made for a while and moved is its maker's alone."""
    mode = package.parent.stat().st_mode & 0o777
    for path in (package, *package.rglob("*")):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def built(entry: Entry, smaller: Smaller | None = None) -> tuple[Program, set[str]]:
    """With digests of its weights."""
    given = {
        name: mb.TensorSpec((1, channels, 1, count), dtype=types.fp16)
        for name, (channels, count) in entry.inputs.items()
    }
    program, o = Program(), Mil(smaller)
    with Function(given, opset_version=TARGET) as function:
        said = entry.describe(o, function.inputs)
        function.set_outputs([mb.identity(x=of, name=name) for name, of in said.items()])
    program.add_function("main", function)
    return program, o.weights


def converted(program: Program) -> Any:
    return ct.convert(
        program,
        minimum_deployment_target=TARGET,
        compute_precision=ct.precision.FLOAT16,
        compute_units=ct.ComputeUnit.CPU_AND_NE,
        pass_pipeline=ct.PassPipeline(PASSES, "heads"),
        skip_model_load=True,
    )


def read(package: Path) -> Any:
    """What it says, of its file alone: Apple's own reader writes to the folder that it reads."""
    spec: Any = Model_pb2.Model()  # type: ignore[attr-defined]
    try:
        spec.ParseFromString((package / MODEL).read_bytes())
        if not spec.mlProgram.functions:
            raise DecodeError("it says nothing")
    except DecodeError as e:
        raise ValueError(f"{package / MODEL} cannot be read: it was cut short, or changed") from e
    return spec


def content(package: Path) -> str:
    """A digest of all that the package computes: equal for equal exports, of whatever day or process.

    In place of where a weight lies stands its own digest: in which order they were written says nothing.
    """
    spec = read(package)
    spec.description.ClearField("metadata")
    there = (package / blob.WEIGHTS).is_file()
    weights = {of.begin: of.sha256 for of in blob.blobs(package)} if there else {}
    for function in spec.mlProgram.functions.values():
        for op in function.block_specializations[function.opset].operations:
            value = op.attributes["val"] if op.type == "const" else None
            if value is not None and value.WhichOneof("value") == "blobFileValue":
                if not there:
                    raise ValueError(f"{package} has no {blob.WEIGHTS}; copy it again, or export the run again")
                value.blobFileValue.fileName = weights[value.blobFileValue.offset]
                value.blobFileValue.offset = 0
    return sha256(spec.SerializeToString(deterministic=True)).hexdigest()
