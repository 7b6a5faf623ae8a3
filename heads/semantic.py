"""What is in a state, by name: few active latents of many, some of them concepts, and the state made of them again.

Latents are atoms, directions of unit length in the space of the states. Concepts are picked by what a linear reading
of the state says of them, free latents by how much of what is left of the state lies along them, some at a time; after
each pick all values move down the steepest slope to what explains the state best. So a decoder that is the encoder
turned round reaches with 32 latents what one look needs many more for. Nothing else of the state goes on: not even its
size, which is read off the latents too.

Axes: N positions, S the numbers of a state (Gemma 3n: four streams), C concepts, W latents, concepts first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from agp.losses import Sums

TYPES = ("primitive", "invariant", "bundle")
SETTLED = ["mean", "usual", "limits", "levels"]  # measured, not trained
NEVER = 1e9  # no state scores as much


@dataclass(frozen=True, kw_only=True)
class Config:
    state: int  # numbers of a state
    concepts: tuple[str, ...] = ()  # names, those of one type together
    types: tuple[int, ...] = (0, 0, 0)  # how many concepts there are of each
    width: int = 1536  # free latents
    active: tuple[int, ...] = (1, 2, 1)  # in training, so many concepts of each type
    picks: int = 7  # of free latents, one after another
    each: int = 4  # so many of them in training
    settle: int = 1  # more moves of the values, with nothing new
    naming: float = 0.1  # what the concepts weigh in the loss


Pick = Callable[[mx.array, int], mx.array]  # (N W along free atoms, 0 where they are active; which pick) -> new ones


class Code(NamedTuple):
    scores: mx.array  # N C: logits, what the head says of each concept
    chosen: mx.array  # N W: which latents are active
    values: mx.array  # N W: how much of each there is; none is negative, 0 where it is not active


class Head(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        concepts = sum(config.types)
        self.config = config
        self.naming = nn.Linear(config.state, concepts)
        self.naming.weight = mx.zeros_like(self.naming.weight)
        self.atoms = mx.random.normal((concepts + config.width, config.state))
        self.mean = mx.zeros(config.state)  # of the states that it learned from
        self.size = mx.zeros(concepts + config.width)
        self.usual = mx.array(0.0)  # log of the size
        self.limits = mx.full((concepts,), NEVER)  # a concept whose score is above is active, once they are chosen
        self.levels = mx.full((config.picks, config.width), NEVER)  # and a free latent, at each pick
        self.freeze(keys=SETTLED, recurse=False)

    def __call__(self, states: mx.array, exactly: bool = True) -> tuple[Code, mx.array, mx.array]:
        """With the direction, N S, and the log of the size, N, that come out of the latents.

        `exactly` so many of each type are active; otherwise those above their thresholds.
        """
        seen = normalised(states)
        scores = self.naming(seen)
        named = most(scores, self.config) if exactly else scores > self.limits
        code = self.pursue(seen - self.mean, scores, named, self.highest if exactly else self.above)
        return code, self.mean + code.values @ self.directions(), self.usual + code.values @ self.size

    def pursue(self, seen: mx.array, scores: mx.array, named: mx.array, pick: Pick) -> Code:
        """Of states less their mean."""
        atoms, count = self.directions(), scores.shape[1]
        free = mx.zeros((len(seen), self.config.width), mx.bool_)
        values, left = mx.zeros((len(seen), len(atoms))), seen
        for step in range(self.config.picks + self.config.settle):
            along = left @ atoms.T
            if step < self.config.picks:
                free = free | pick(mx.where(free, 0, mx.stop_gradient(along[:, count:])), step)
            slope = mx.where(mx.concatenate([named, free], axis=1), along, 0)
            moved = slope @ atoms
            stride = mx.stop_gradient(mx.square(slope).sum(-1) / (mx.square(moved).sum(-1) + 1e-9))[:, None]
            values, left = values + stride * slope, left - stride * moved
        return Code(scores, mx.concatenate([named, free], axis=1), mx.maximum(values, 0))

    def highest(self, along: mx.array, step: int) -> mx.array:
        return along >= mx.maximum(kth(along, self.config.each), 1e-6)

    def above(self, along: mx.array, step: int) -> mx.array:
        return along > self.levels[step]

    def directions(self) -> mx.array:
        return self.atoms / mx.linalg.norm(self.atoms, axis=-1, keepdims=True)

    def mended(self, states: mx.array, exactly: bool = False) -> mx.array:
        """The state as its latents say it: N S in and out."""
        _, seen, size = self(states, exactly)
        return seen * mx.exp(size)[:, None]


def normalised(states: mx.array) -> mx.array:
    return states / (mx.exp(log_size(states))[:, None])


def log_size(states: mx.array) -> mx.array:
    """Of the root mean square."""
    return 0.5 * mx.log(mx.square(states).mean(-1) + 1e-30)


def most(scores: mx.array, config: Config) -> mx.array:
    """The highest of each type."""
    found, at = [], 0
    for count, active in zip(config.types, config.active, strict=True):
        if count:
            of_type = mx.stop_gradient(scores[:, at : at + count])
            found.append(of_type >= kth(of_type, min(active, count)))
        at += count
    return mx.concatenate(found, axis=1) if found else scores > NEVER


def kth(x: mx.array, k: int) -> mx.array:
    """The k-th highest of a row."""
    return mx.topk(x, k, axis=-1).min(-1, keepdims=True)


def loss(head: Head, states: mx.array, labels: mx.array, weights: mx.array) -> Sums:
    """How much of the state is left over, and how badly the concepts are named: `labels` N C, each as its weight is."""
    code, seen, size = head(states)
    left = mx.square(normalised(states) - seen).mean(-1) + mx.square(log_size(states) - size)
    wrong = mx.logaddexp(0, code.scores) - labels * code.scores
    named = (weights * wrong).sum(-1) / max(1, labels.shape[1])
    return (left + head.config.naming * named).sum(), mx.array(float(len(states)))
