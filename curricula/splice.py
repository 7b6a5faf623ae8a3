"""A state at a tap replaced by another, and what the blocks above then say, beside what the teacher said."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from agp.layers import tail
from agp.models.decoder import Decoder, Stream
from curricula.features import Features, Together
from curricula.oracle import ROOM

Mend = Callable[[mx.array], mx.array]  # states N S -> states N S


class Said(NamedTuple):
    """Of each position."""

    agrees: np.ndarray  # whether the likeliest token is the teacher's
    loss: np.ndarray  # nats, of the token that stands next in the text


def batches(features: Features, size: int) -> list[list[int]]:
    """All documents, those of like length together."""
    spans = [(features.of(d, "length") - features.of(d, "first"), features.of(d, "length")) for d in count(features)]
    order = sorted(count(features), key=lambda d: (*spans[d], d))
    return [order[at : at + size] for at in range(0, len(order), size)]


def count(features: Features) -> range:
    return range(len(features.begins))


def normed(model: Decoder, given: Together, tap: int, mend: Mend) -> mx.array:
    """B n D: what the head reads after the blocks above block `tap` went on from mended states."""
    hidden = given.states[0]
    mended = mend(hidden.reshape(-1, np.prod(hidden.shape[2:]))).reshape(hidden.shape)
    inputs = model.embed(tail(given.tokens, hidden.shape[1])).inputs
    stream = Stream(mended, inputs, given.end, given.pad, given.shared)
    return model.normed(model.blocks(stream, start=tap + 1).hidden)


def at_tap(given: Together, number: int) -> Together:
    return given._replace(states=given.states[number : number + 1])


def logs(model: Decoder, given: mx.array) -> mx.array:
    logits = model.head(given).astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def chunks(model: Decoder, total: int) -> Iterator[slice]:
    """So few positions that their logits may all be there at once."""
    few = max(1, ROOM // model.config.vocab_size)
    return (slice(at, min(total, at + few)) for at in range(0, total, few))


def said(model: Decoder, features: Features, number: int, mends: Sequence[Mend], size: int = 64) -> list[Said]:
    """For each way to mend the states of one tap, at all positions."""
    tap, found = features.taps[number], [([], []) for _ in mends]
    for documents in batches(features, size):
        given = at_tap(features.together(documents), number)
        at = mx.array(np.flatnonzero(given.chosen))
        places = given.places[given.chosen]
        best, next_one = features.take("taught", places)[:, 0], following(features, documents, given)
        for (agrees, loss), mend in zip(found, mends, strict=True):
            states = normed(model, given, tap, mend).flatten(0, 1)[at]
            parts = [scored(logs(model, states[part]), best[part], next_one[part]) for part in chunks(model, len(at))]
            mx.eval(parts)
            agrees.append((places, np.concatenate([np.array(part[0]) for part in parts])))
            loss.append((places, np.concatenate([np.array(part[1]) for part in parts])))
    return [Said(ordered(agrees), ordered(loss)) for agrees, loss in found]


def scored(shares: mx.array, best: np.ndarray, next_one: np.ndarray) -> tuple[mx.array, mx.array]:
    told = mx.take_along_axis(shares, mx.array(next_one)[:, None], axis=-1)[:, 0]
    return mx.argmax(shares, axis=-1) == mx.array(best), -told


def following(features: Features, documents: Sequence[int], given: Together) -> np.ndarray:
    """The token that stands after each position, in the order of `given.chosen`."""
    spans = [(features.of(d, "ids"), features.of(d, "first")) for d in documents]
    return np.concatenate([ids[first:] for ids, first in spans]).astype(np.int32)


def ordered(parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    places, values = (np.concatenate(of) for of in zip(*parts, strict=True))
    found = np.empty_like(values)
    found[places] = values
    return found
