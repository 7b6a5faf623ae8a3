"""What the entry for many positions is given, from a harvest: real states, keys and values of one text at a time."""

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from agp.layers import Place
from curricula.features import Features
from export import depth
from export.program import MANY, columns, senders
from heads.bundle import Bundle


class Feed(NamedTuple):
    inputs: dict[str, np.ndarray]  # columns, those after the last position are zero
    positions: np.ndarray  # of the features


def feeds(bundle: Bundle, features: Features, documents: np.ndarray, room: int, size: int = MANY) -> Iterator[Feed]:
    """Of these documents all positions, up to `size` at once."""
    for d in documents:
        count = features.of(d, "length") - features.of(d, "first")
        for begin in range(0, count, size):
            yield feed(bundle, features, d, begin, min(begin + size, count), room, size)


def feed(bundle: Bundle, features: Features, d: int, begin: int, end: int, room: int, size: int) -> Feed:
    """Positions of a document, counted from where its answer begins."""
    first, count, home = features.of(d, "first"), end - begin, features.begins[d]
    at, back = home + np.arange(begin, end), bundle.window - 1
    states = features.states(at).reshape(count, len(features.taps), -1)
    before = np.zeros((back, states.shape[2]))
    near = home + np.arange(max(begin - back, 0), begin)
    before[back - len(near) :] = features.states(near, 0).reshape(len(near), states.shape[2])
    inputs = {"states": padded(columns(states.reshape(count, -1)), size), "before": columns(before)}
    if senders(bundle):
        tokens = features.of(d, "ids")[first - 1 + begin : first - 1 + end]
        told = bundle.decoder.embed_vectors(mx.array(tokens)).astype(mx.float32)
        inputs["told"] = padded(columns(told), size)
    length = first - 1 + end  # of what has been read by then; the last token of a text is no input
    place = Place(features.about["end"] - (features.of(d, "length") - 1 - length), None)
    for kind, attention in bundle.modules[0].attention.items():
        keys, values = (np.moveaxis(features.of(d, f"{of}.{kind}")[:length], 0, 1) for of in ("keys", "values"))
        for name, of in depth.handed(attention, place, keys, values, count, room).items():
            inputs[f"{name}_{kind}"] = of if name in ("keys", "values") else padded(of, size)
    return Feed(inputs, at)


def padded(x: np.ndarray, size: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, 0), (0, 0), (0, size - x.shape[3])))
