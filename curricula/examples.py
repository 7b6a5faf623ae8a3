"""Concepts by example: a document is like the examples if its mean state is nearer to theirs than to the others'.

That is a guess by the same states that the head reads, and so no truth of its own: how well the examples themselves are
told apart, by the half that the direction was not found on, is said beside it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from agp.models.load import Loaded
from curricula.clustered import auroc
from curricula.features import Features
from curricula.kernel import Concept
from heads.semantic import normalised

LONGEST = 512  # tokens of an example

Means = Callable[[Sequence[str]], np.ndarray]  # texts -> their mean states, M S


class Direction(NamedTuple):
    along: np.ndarray  # S
    limit: float  # what lies above it is like the examples
    separation: float  # AUROC between the examples held out of both sides


def means(loaded: Loaded, tap: int) -> Means:
    """Of the teacher's states after block `tap`."""
    tokenizer, model = loaded.tokenizer, loaded.model
    assert tokenizer is not None

    def found(texts: Sequence[str]) -> np.ndarray:
        rows = [mx.array([tokenizer.encode(text)[:LONGEST]]) for text in texts]
        hidden = [model.blocks(model.embed(row), stop=tap + 1).hidden[0].flatten(1) for row in rows]
        return np.array(mx.stack([normalised(states).mean(0) for states in hidden]))

    return found


def direction(concept: Concept, mean: Means) -> Direction:
    """Found on every other example; the rest say where along it the two sides part best."""
    own, others = (mean(concept.given["examples"][side]) for side in ("positive", "negative"))
    along = own[::2].mean(0) - others[::2].mean(0)
    scores = np.concatenate([own[1::2], others[1::2]]) @ along
    is_own = np.arange(len(scores)) < len(own[1::2])
    order = np.unique(scores)
    cuts = (order[1:] + order[:-1]) / 2 if len(order) > 1 else order
    right = [((scores > cut) == is_own).mean() for cut in cuts]
    return Direction(along, float(cuts[int(np.argmax(right))]), auroc(scores, is_own))


def like(features: Features, tap: int, found: Sequence[Direction]) -> np.ndarray:
    """Which documents are, for each direction."""
    number, rows = features.taps.index(tap), []
    for begin, end in zip(features.begins, [*features.begins[1:], features.count], strict=True):
        states = features.states(np.arange(begin, end))[:, number]
        rows.append(np.array(normalised(mx.array(states.reshape(end - begin, -1))).mean(0)))
    whole = np.stack(rows)
    return np.stack([whole @ one.along > one.limit for one in found])
