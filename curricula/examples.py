"""Concepts by example: a document is like them if the teacher's state is, where its answer begins.

An example is read as a prompt, so that both are states of one kind. That is a guess by the same states that the head
reads, and so no truth of its own: how well the examples themselves are told apart, by the half that the direction was
not found on, is said beside it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from agp.models.load import Loaded
from curricula.clustered import auroc
from curricula.features import Features
from curricula.kernel import Concept
from heads import semantic

LONGEST = 512  # tokens of an example

States = Callable[[Sequence[str]], np.ndarray]  # prompts -> the normalised states where answers begin, M S


class Direction(NamedTuple):
    along: np.ndarray  # S
    limit: float  # what lies above it is like the examples
    separation: float  # AUROC between the examples held out of both sides


def states(loaded: Loaded, tap: int) -> States:
    """The teacher's, after block `tap`."""
    tokenizer, model = loaded.tokenizer, loaded.model
    assert tokenizer is not None

    def ids(text: str) -> list[int]:
        turns = [{"role": "user", "content": text}]
        return (tokenizer.encode(text) if tokenizer.template is None else tokenizer.chat(turns))[-LONGEST:]

    def found(texts: Sequence[str]) -> np.ndarray:
        last = [model.blocks(model.embed(mx.array([ids(text)])), stop=tap + 1).hidden[0, -1] for text in texts]
        return np.array(semantic.normalised(mx.stack(last).flatten(1)))

    return found


def direction(concept: Concept, read: States) -> Direction:
    """Found on every other example; the rest say where along it the two sides part best."""
    own, others = (read(concept.given["examples"][side]) for side in ("positive", "negative"))
    along = own[::2].mean(0) - others[::2].mean(0)
    scores = np.concatenate([own[1::2], others[1::2]]) @ along
    is_own = np.arange(len(scores)) < len(own[1::2])
    order = np.unique(scores)
    cuts = (order[1:] + order[:-1]) / 2 if len(order) > 1 else order
    right = [((scores > cut) == is_own).mean() for cut in cuts]
    return Direction(along, float(cuts[int(np.argmax(right))]), auroc(scores, is_own))


def like(features: Features, tap: int, found: Sequence[Direction]) -> np.ndarray:
    """Which documents are, for each direction."""
    first = features.states(features.begins)[:, features.taps.index(tap)]
    seen = np.array(semantic.normalised(mx.array(first.reshape(len(first), -1))))
    return np.stack([seen @ one.along > one.limit for one in found])
