"""A saved Core ML package, computed by numpy from the bytes that were written: what it says, without Core ML.

Exactly, only weights are rounded: what is off then is the program's logic. In half precision every result is rounded,
and sums are wide, as the Neural Engine is said to do: what is off more is what it would be off.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.converters.mil.frontend.milproto.load import load as program_of
from coremltools.converters.mil.mil import types

from export import blob, coreml

Given = Mapping[str, Any]  # what an operation is given, by name; None where it is left out


def load(package: Path) -> Any:
    """The program, its weights read back from the file."""
    if absent := [part for part in ("Manifest.json", coreml.MODEL) if not (package / part).is_file()]:
        raise ValueError(f"{package} has no {absent[0]}; copy it again, or export the run again")
    coreml.content(package)  # it is read whole: what cannot be is named
    spec = coreml.read(package)
    return program_of(spec, spec.specificationVersion, file_weights_dir=str((package / blob.WEIGHTS).parent))


def run(
    program: Any,
    function: str,
    feeds: Mapping[str, np.ndarray],
    exact: bool,
    watch: Callable[[Any, Given, np.ndarray], None] = lambda op, given, found: None,
) -> dict[str, np.ndarray]:
    """Outputs by name. `watch` is shown every operation, what it was given, and what came of it."""
    described = program.functions[function]
    wide = np.float64 if exact else np.float32
    known = {var: rounded(feeds[name], var, exact) for name, var in described.inputs.items()}

    def value(of: Any) -> Any:
        if isinstance(of, list | tuple):
            return [value(one) for one in of]
        found = known[of] if of in known else of.val
        if found is None:
            found = of.op.materialized_val_inference()  # a compressed weight
        return found.astype(wide) if isinstance(found, np.ndarray | np.floating) and found.dtype.kind == "f" else found

    for op in described.operations:
        if op.op_type == "const" or op.op_type.startswith("constexpr_"):
            continue
        if op.op_type not in OPS:
            raise ValueError(f"{op.name} is a {op.op_type}, of which it is not known here what it computes")
        given = {name: None if of is None else value(of) for name, of in op.inputs.items()}
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            found = OPS[op.op_type](given)
            (out,) = op.outputs
            known[out] = rounded(found, out, exact)
        watch(op, given, known[out])
        if tuple(out.shape) != known[out].shape:
            raise ValueError(f"{op.name} should give {tuple(out.shape)} and gives {known[out].shape}")
    return {out.name: known[out] for out in described.outputs}


def rounded(x: Any, var: Any, exact: bool) -> np.ndarray:
    declared = np.dtype(types.nptype_from_builtin(var.dtype))
    return np.asarray(x).astype(np.float64 if exact and declared.kind == "f" else declared)


def conv(g: Given) -> np.ndarray:
    """Along the last axis, with nothing around it."""
    x, weight, bias = g["x"], g["weight"], g.get("bias")
    plain = {"strides": 1, "dilations": 1, "groups": 1}
    if odd := [name for name, usual in plain.items() if g.get(name) is not None and np.any(g[name] != usual)]:
        raise ValueError(f"a convolution with {', '.join(odd)} is not known here")
    if weight.shape[2] != 1 or g["pad_type"] != "valid":
        raise ValueError("only a convolution along the last axis, with nothing around it, is known here")
    count = x.shape[3] - weight.shape[3] + 1
    found = np.sum([weight[:, :, 0, k] @ x[0, :, 0, k : k + count] for k in range(weight.shape[3])], axis=0)
    return (found if bias is None else found + bias[:, None])[None, :, None]


def layer_norm(g: Given) -> np.ndarray:
    x, axes = g["x"], tuple(g["axes"])
    centred = x - x.mean(axes, keepdims=True)
    found = centred / np.sqrt(np.square(centred).mean(axes, keepdims=True) + g["epsilon"])
    if g.get("gamma") is not None or g.get("beta") is not None:
        raise ValueError("a layer norm with gains is not known here")
    return found


def gelu(g: Given) -> np.ndarray:
    if g["mode"] != "TANH_APPROXIMATION":
        raise ValueError(f"a gelu of mode {g['mode']} is not known here")
    x = g["x"]
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(g: Given) -> np.ndarray:
    weights = np.exp(g["x"] - g["x"].max(g["axis"], keepdims=True))
    return weights / weights.sum(g["axis"], keepdims=True)


def matmul(g: Given) -> np.ndarray:
    x, y = (g[name].swapaxes(-1, -2) if g.get(f"transpose_{name}") else g[name] for name in "xy")
    return x @ y


def cut(g: Given) -> np.ndarray:
    masks = [g[name] if g.get(name) is not None else [False] * g["x"].ndim for name in ("begin_mask", "end_mask")]
    ends = zip(g["begin"], g["end"], *masks, strict=True)
    return g["x"][tuple(slice(None if open_ else a, None if closed else b) for a, b, open_, closed in ends)]


def reduced(how: Callable) -> Callable[[Given], np.ndarray]:
    return lambda g: how(g["x"], axis=tuple(g["axes"]), keepdims=bool(g["keep_dims"]))


def one(how: Callable) -> Callable[[Given], np.ndarray]:
    return lambda g: how(g["x"])


def two(how: Callable) -> Callable[[Given], np.ndarray]:
    return lambda g: how(g["x"], g["y"])


OPS: dict[str, Callable[[Given], Any]] = {
    "add": two(np.add),
    "sub": two(np.subtract),
    "mul": two(np.multiply),
    "real_div": two(np.divide),
    "maximum": two(np.maximum),
    "minimum": two(np.minimum),
    "greater_equal": two(np.greater_equal),
    "exp": one(np.exp),
    "tanh": one(np.tanh),
    "round": one(np.round),
    "erf": one(np.vectorize(math.erf)),
    "identity": one(lambda x: x),
    "log": lambda g: np.log(g["x"] + g["epsilon"]),
    "select": lambda g: np.where(g["cond"], g["a"], g["b"]),
    "concat": lambda g: np.concatenate(g["values"], axis=int(g["axis"])),
    "reduce_max": reduced(np.max),
    "reduce_sum": reduced(np.sum),
    "reduce_mean": reduced(np.mean),
    "slice_by_index": cut,
    "layer_norm": layer_norm,
    "gelu": gelu,
    "softmax": softmax,
    "matmul": matmul,
    "transpose": lambda g: g["x"].transpose(g["perm"]),
    "conv": conv,
}
