"""What a state would say, at a glance: logits of the tokens that the teacher uses most, all others taken as one.

A whole vocabulary head costs as much as a block, too much for a question that is asked at every tap. Of a user's own
distribution a small part of the vocabulary carries nearly all.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from agp.models.decoder import Decoder
from heads import vocabulary
from heads.vocabulary import rows

PART = 1 << 14  # rows of the head at once
LEAST = 1e-9  # of the share of all others: a log of it is never far away
FACTS = ("confidence", "doubt", "margin", "entropy", "height", "lead")


@dataclass(frozen=True, kw_only=True)
class Config:
    count: int  # tokens looked at
    others: int  # all the rest of the vocabulary
    dim: int
    cap: float | None  # of the logits
    clear: float  # a gap as large as labels ask for: from there on it makes no difference how large


class Glance(NamedTuple):
    token: mx.array  # the likeliest of those looked at
    facts: mx.array  # ... F, as FACTS says: logs of the first one's share and of all others', a gap, nats, a logit,
    # the gap up to what is clear


class Head(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.ids = mx.zeros(config.count, mx.int32)
        self.rows = mx.zeros((config.count, config.dim))
        self.rest = mx.zeros(config.dim)  # the mean row of all others
        self.config = config

    @property
    def macs(self) -> int:
        return self.rows.size + self.rest.size

    def __call__(self, normed: mx.array) -> Glance:
        """Of states, ... D, that the final norm has seen."""
        config, cap = self.config, self.config.cap
        logits = vocabulary.logits(normed, self.rows, cap)
        best = mx.argmax(logits, axis=-1, keepdims=True)
        first = mx.take_along_axis(logits, best, axis=-1)
        below_it = mx.where(mx.arange(logits.shape[-1]) == best, -mx.inf, logits)
        second = below_it.max(-1, keepdims=True)
        rest = vocabulary.logits(normed, self.rest[None], cap)
        weight, other = mx.exp(below_it - first), config.others * mx.exp(rest - first)
        others = weight.sum(-1, keepdims=True) + other + LEAST
        whole = mx.log1p(others)
        below = (weight * (first - logits)).sum(-1, keepdims=True) + other * (first - rest)
        gap, entropy = first - second, whole + below / (1 + others)
        facts = [-whole, mx.log(others) - whole, gap, entropy, first, mx.minimum(gap, config.clear)]
        return Glance(self.ids[best[..., 0]], mx.concatenate(facts, axis=-1))


def glimpse(decoder: Decoder, ids: np.ndarray, clear: float) -> tuple[Config, Head]:
    """Of the tokens `ids`: there is nothing to be learned."""
    size, dim = decoder.config.vocab_size, decoder.config.hidden_size
    cap = decoder.config.final_logit_softcapping
    config = Config(count=len(ids), others=size - len(ids), dim=dim, cap=cap, clear=clear)
    assert config.others > 0, "a glance at the whole vocabulary is no glance"
    total = mx.zeros(dim)
    for at in range(0, size, PART):
        total = total + rows(decoder, mx.arange(at, min(at + PART, size))).sum(0)
        mx.eval(total)
    head = Head(config)
    head.ids, head.rows = mx.array(ids), rows(decoder, mx.array(ids))
    head.rest = (total - head.rows.sum(0)) / config.others
    head.freeze()
    return config, head


def most_used(taught: np.ndarray, logs: np.ndarray, count: int) -> np.ndarray:
    """Tokens to which the teacher gives most, N K each: the likeliest of each position and the logs of their shares."""
    used: Any = np.bincount(taught.reshape(-1), np.exp(logs.astype(np.float32)).reshape(-1))
    return np.sort(np.argsort(-used, kind="stable")[:count]).astype(np.int32)
