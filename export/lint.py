"""What would keep an operation of a saved package off the Neural Engine, or let it say something else there; each with
the fix.

Where an operation runs is decided on the device, and a newer system may decide otherwise: `agp bench ane` tells what
was decided. This tells what is known to go wrong before there is a device.
"""

from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.types.symbolic import any_symbolic

RANK, CHANNELS, POSITIONS = 5, 65_536, 16_384
ALIGNED = 32  # numbers of half precision: 64 bytes
LEAST, MOST = 2.0**-24, 65_504.0  # half precision begins and ends there
HALVES = ("fp16", "int8", "uint8", "int16", "uint16", "bool")
NEVER = {"reduce_prod", "rnn", "gru", "lstm", "non_zero", "non_maximum_suppression"}
HOST = {"topk", "argsort", "cumsum", "one_hot", "reduce_argmax", "reduce_argmin", "read_state", "coreml_update_state"}
BEGINS = ("gather", "scatter")
UNTOLD = {"erf", "round"}


class Finding(NamedTuple):
    fails: bool  # otherwise it is worth knowing
    rule: str
    entry: str
    what: str
    fix: str


def lint(program: Any) -> list[Finding]:
    """By rule, what is the same said once with its count."""
    found: Counter[Finding] = Counter()
    for name, function in program.functions.items():
        found.update(interface(name, function))
        for op in function.operations:
            found.update(operation(name, op))
    told = [of._replace(what=f"{of.what} ({count} times)") if count > 1 else of for of, count in found.items()]
    return sorted(told, key=lambda of: (not of.fails, of.rule, of.entry, of.what))


def interface(entry: str, function: Any) -> Iterator[Finding]:
    singles = []
    for side, variables in (("input", function.inputs.values()), ("output", function.outputs)):
        for var in variables:
            if kind(var) != "fp16":
                fix = "hand over half precision: a cast is an operation more, and float32 runs elsewhere"
                yield Finding(True, "precision", entry, f"{side} {var.name} is {kind(var)}", fix)
            if not any_symbolic(var.shape) and var.shape and var.shape[-1] % ALIGNED:
                singles.append((var.shape[-1], var.name))
    for size in sorted({size for size, _ in singles}):
        names = sorted(name for of, name in singles if of == size)
        told = f"{len(names)} inputs and outputs end in an axis of {size} ({', '.join(names[:3])}, ...), padded to "
        fix = "where many positions are asked at once, use an entry of 64; one alone is soonest done by the CPU"
        yield Finding(False, "last axis", entry, f"{told}{-(-size // ALIGNED) * ALIGNED}", fix)


def operation(entry: str, op: Any) -> Iterator[Finding]:
    named = op.op_type
    for var in op.outputs:
        if any_symbolic(var.shape):
            fix = "give each shape an entry of its own; a shape that may change keeps all of it off"
            yield Finding(True, "dynamic shape", entry, f"{named} gives {tuple(map(str, var.shape))}", fix)
            return
        if named != "const":
            yield from typed(entry, named, var)
            yield from shaped(entry, named, tuple(var.shape))
    yield from placed(entry, named)
    yield from numbers(entry, op)


def typed(entry: str, named: str, var: Any) -> Iterator[Finding]:
    if kind(var) not in HALVES:
        fix = "a weight beyond 65,504 leaves its operation in float32 without a word: scale it, or its input"
        yield Finding(True, "precision", entry, f"{named} computes in {kind(var)}", fix)


def shaped(entry: str, named: str, shape: tuple[int, ...]) -> Iterator[Finding]:
    if len(shape) > RANK:
        yield Finding(True, "rank", entry, f"{named} has rank {len(shape)}", f"{RANK} at most: join axes")
    elif len(shape) == 4:
        if shape[1] > CHANNELS or max(shape[2:]) > POSITIONS:
            fix = f"at most {CHANNELS:,} channels and {POSITIONS:,} of the last axes: cut it, or turn it round"
            yield Finding(True, "size", entry, f"{named} is {' x '.join(map(str, shape))}", fix)


def placed(entry: str, named: str) -> Iterator[Finding]:
    if named in NEVER or named.startswith("scatter"):
        yield Finding(True, "placement", entry, f"{named} has no way there on any chip", "say it by sums and products")
    elif named in HOST or named.startswith(BEGINS):
        fix = "let the host do it with what comes out, or use thresholds and products with 0 and 1"
        yield Finding(True, "placement", entry, f"{named} is given to the CPU, and what follows waits for it", fix)
    elif named in UNTOLD:
        fix = "`agp bench ane` on a Mac shows the device of each operation"
        yield Finding(False, "placement", entry, f"nothing published tells where {named} runs", fix)


def numbers(entry: str, op: Any) -> Iterator[Finding]:
    """What half precision makes of constants, and of some operations."""
    eps = op.inputs.get("epsilon")
    if eps is not None and op.op_type != "log" and float(eps.val) < LEAST:
        fix = f"{LEAST:.1e} is the least that half precision holds; 1e-6 is stored as 1.01e-6"
        yield Finding(True, "epsilon", entry, f"{op.op_type} adds {float(eps.val):.1e}: zeros become 0/0", fix)
    if op.op_type == "const" and op.outputs[0].val is not None and np.asarray(op.outputs[0].val).dtype.kind == "f":
        value = np.asarray(op.outputs[0].val)
        if not (np.abs(value) <= MOST).all():
            fix = "mask with -40,000 and scale weights: infinity times zero is no number"
            yield Finding(True, "constant", entry, f"a constant {value.shape} is beyond 65,504 or no number", fix)
        elif value.size > 1 and value.any() and (np.abs(value[value != 0]) < LEAST * 32).mean() > 0.5:
            fix = "scale it, and what comes of it back: so small a number has hardly a digit left"
            yield Finding(True, "constant", entry, f"most of a constant {value.shape} is below {LEAST * 32:.0e}", fix)
    if op.op_type == "slice_by_index" and len(op.x.shape) == 4 and op.begin.val[-1] > 0 and prod(op.x.shape) > 1:
        fix = "cut along channels, or from the first position on: M1 and M2 lose what is beyond 4,095 here"
        yield Finding(False, "slice", entry, "a cut of the last axis that does not begin at its first", fix)
    if op.op_type == "reduce_log_sum_exp":
        fix = "take the largest off first: on the device its sum of exponentials ends at 65,504"
        yield Finding(True, "overflow", entry, f"{op.op_type} is said to be 0 from 7.6 on", fix)
    if op.op_type in ("reduce_sum_square", "reduce_l2_norm", "rsqrt"):
        fix = "say it as a layer norm of the numbers and their opposites: squares overflow from 256 on"
        yield Finding(False, "overflow", entry, f"{op.op_type}: a norm by its squares", fix)


def kind(var: Any) -> str:
    return types.builtin_to_string(var.dtype)
