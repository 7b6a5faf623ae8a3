"""Which token a state says: by the model's head, or by one that proves the same with less."""

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from agp.generate import Sampler

Head = Callable[[mx.array], mx.array]  # of states, ... D, all logits
Proving = Callable[[mx.array], np.ndarray | None]  # of states, ... D, the likeliest tokens; None: more is asked for


class Chosen(NamedTuple):
    ids: np.ndarray  # B n
    logits: mx.array | None  # B n V, unless it was proven without them


def chosen(head: Head, normed: mx.array, sampler: Sampler, draws: np.ndarray, proving: Proving | None) -> Chosen:
    """Of states, B n D, that the final norm has seen; `draws`, B n, say to the sampler which draws these are."""
    known = None if proving is None else proving(normed)
    if known is not None:
        return Chosen(known, None)
    logits = head(normed)
    return Chosen(drawn(logits, sampler, draws), logits)


def drawn(logits: mx.array, sampler: Sampler, draws: np.ndarray) -> np.ndarray:
    return np.array(sampler(logits.flatten(0, 1), draws.reshape(-1))).reshape(draws.shape)
