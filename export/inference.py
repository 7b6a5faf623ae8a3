"""A second opinion of every operation: coremltools knows what most of them compute, without a runtime.

What an operation was given in an exact evaluation is handed to both. It knows no convolution; of those the asset's
runtime and the weights' bytes are the judges.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from coremltools.converters.mil.mil import Function

from export import evaluate
from export.coreml import TARGET, mb
from export.folder import Check
from export.sample import Part

NEAR = 1e-5  # of the largest number: theirs are of single precision


def checked(program: Any, parts: Mapping[str, Part]) -> Check:
    """Of every entry's first feed."""
    asked: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    worst: dict[str, float] = {}

    def watch(op: Any, given: evaluate.Given, found: np.ndarray) -> None:
        given = {name: narrow(x) for name, x in given.items()}
        theirs = opinion(op.op_type, given)
        (asked if theirs is not None else unknown)[op.op_type] += 1
        if theirs is not None:
            with np.errstate(all="ignore"):
                ours = evaluate.OPS[op.op_type]({name: wide(x) for name, x in given.items()})
            worst[op.op_type] = max(worst.get(op.op_type, 0.0), apart(ours, theirs))

    for entry, part in parts.items():
        evaluate.run(program, entry, part.feeds[0], True, watch)
    name = max(worst, key=lambda of: worst[of])
    left = ", ".join(f"{count:,} {of}" for of, count in unknown.items()) or "none"
    told = f"of {asked.total():,} operations the farthest is off by {worst[name]:.1e}, a {name}; not known: {left}"
    return Check("inference", told, all(far <= NEAR for far in worst.values()))


def opinion(name: str, given: Mapping[str, Any]) -> np.ndarray | None:
    with Function({}, opset_version=TARGET), np.errstate(all="ignore"):
        found = getattr(mb, name)(**{of: stated(x) for of, x in given.items() if x is not None})
    return None if found.val is None else np.asarray(found.val)


def stated(x: Any) -> Any:
    if isinstance(x, list):
        return [stated(one) for one in x]
    if isinstance(x, np.bool_):
        return bool(x)
    return mb.const(val=x) if isinstance(x, np.ndarray) and x.ndim else x


def narrow(x: Any) -> Any:
    return changed(x, np.float32)


def wide(x: Any) -> Any:
    return changed(x, np.float64)


def changed(x: Any, kind: Any) -> Any:
    if isinstance(x, list):
        return [changed(one, kind) for one in x]
    return x.astype(kind) if isinstance(x, np.ndarray | np.floating) and x.dtype.kind == "f" else x


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return np.inf
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    sound = np.isfinite(ours)
    if not np.array_equal(sound, np.isfinite(theirs)):
        return np.inf
    ours, theirs = ours[sound], theirs[sound]
    return float(np.abs(ours - theirs).max(initial=0) / max(np.abs(ours).max(initial=0), 1e-30))
