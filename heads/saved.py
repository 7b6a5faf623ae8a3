"""A trained head on disk: `head.safetensors` and `head.json`, its settings. No code, no pickle."""

import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from agp.artifacts import write_json, write_safetensors
from agp.models.tensors import read_header, shown, some

H = TypeVar("H")

FILE, CONFIG = "head.safetensors", "head.json"


def save(folder: Path, config: Any, head: Any) -> None:
    """`head` was made by `Head(config)`; constants among its arrays are kept with its weights."""
    arrays: Any = tree_flatten(head.parameters())
    write_json(folder / CONFIG, asdict(config))
    write_safetensors(folder / FILE, dict(arrays))


def load(folder: Path, kind: Callable[..., Any], make: Callable[[Any], H]) -> H:
    """A `make(kind(...))` as it was saved, frozen."""
    config = settings(folder / CONFIG, kind)
    head: Any = make(config)
    wanted: Any = dict(tree_flatten(head.parameters()))
    tensors, wrong = read_header(folder / FILE)
    there = {tensor.name: tuple(tensor.shape) for tensor in tensors}
    wrong += [f"{name} is missing" for name in sorted(wanted.keys() - there.keys())]
    wrong += [f"{name} is no part of it" for name in sorted(there.keys() - wanted.keys())]
    wrong += [
        f"{name} has shape {there[name]}; {array.shape} is needed"
        for name, array in wanted.items()
        if name in there and there[name] != array.shape
    ]
    if wrong:
        raise ValueError(f"{folder / FILE}: {some(wrong, 400, '; ')}")
    arrays: Any = mx.load(str(folder / FILE))
    head.update(tree_unflatten(list(arrays.items())))
    head.freeze()
    head.eval()
    return head


def settings(path: Path, kind: Callable[..., Any]) -> Any:
    try:
        given = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as e:
        raise ValueError(f"{path} cannot be read: {shown(str(e))}") from e
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if odd := sorted(given.keys() ^ known):
        raise ValueError(f"{path} holds other settings than a head of this kind has: {some(odd)}")
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
