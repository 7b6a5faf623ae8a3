"""The trajectory head: is this state good enough to leave with now, would it live, and from which tap on is it enough?

It reads the taps of a position up to the one where it is asked, the first tap of some positions before (always there,
however early they left), and a glance at what the state would say. Its last layer is linear and one a tap: `calibrate`
fits it again, and nothing else, to states that the depth module has mended.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from agp.losses import Sums

UNIT = 1e-6  # added to a mean square; half precision still has it
ROUTES = ("accept_local", "continue_local", "revive_local", "escalate")


@dataclass(frozen=True, kw_only=True)
class Config:
    taps: int
    width: int  # of a state: all streams of it
    dim: int  # of what the final norm takes
    facts: int  # of a glance
    window: int = 4  # positions, this one included
    hidden: int = 48
    dropout: float = 0.1


class Seen(NamedTuple):
    now: mx.array  # N T W: states of this position
    before: mx.array  # N P W: of the first tap, of positions before; zero where there is none
    read: mx.array  # N T D: what the final norm makes of each state, or of the mended one
    facts: mx.array  # N T F: a glance at that


class Told(NamedTuple):
    """Logits of each tap, N T ..."""

    route: Any  # 4
    vitality: Any
    leave: Any  # whether the token that would be said here is the teacher's
    hope: Any  # how sure the teacher will be, from what is known before a look: whether one is worth its cost
    earliest: Any  # T + 1: the last is "at none"


class Carried(NamedTuple):
    """What positions, of any shape, take along from tap to tap, so that nothing is read twice."""

    tap: int  # counted from 0; -1 before the first
    sum: mx.array  # ... H: of positions before, and of the taps so far
    state: Any  # ... W: at the last of them, to unit size
    known: Any  # ... E: what is known there before the state is read


class Head(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        taps, hidden = config.taps, config.hidden
        self.config = config
        scale = config.width**-0.5
        self.now = scale * mx.random.normal((taps, config.width, hidden))
        self.before = 0.5 * scale * mx.random.normal((config.window - 1, config.width, hidden))
        self.bias = mx.zeros((taps, hidden))
        self.middle = hidden**-0.5 * mx.random.normal((taps, hidden, hidden))
        self.size = mx.ones((taps, config.facts + 1))  # of path and facts: set once from data, not learned
        self.zero = mx.zeros((taps, config.facts + 1))
        self.first = mx.zeros((taps, hidden + 2))
        self.last = mx.zeros((taps, hidden + 2 + config.facts + config.dim, len(ROUTES) + 3 + taps))
        self.freeze(keys=["size", "zero"], recurse=False)

    def macs(self, tap: int) -> tuple[int, int]:
        """Of hope at one tap, after those below (positions before are read once, at the first), and of all the rest."""
        once = self.before.size if tap == 0 else 0
        return once + self.now[0].size + self.middle[0].size + self.first[0].size, self.last[0].size

    def __call__(self, seen: Seen, kept: mx.array | None = None) -> Told:
        return self.say(self.features(seen, kept))

    def kept(self, count: int, seed: int) -> mx.array:
        """N T E: what dropout leaves. It is drawn for a whole batch, so that hosts that share one drop the same."""
        share, (taps, hidden) = 1 - self.config.dropout, self.bias.shape
        return mx.random.bernoulli(share, (count, taps, hidden), key=mx.random.key(seed)) / share

    def features(self, seen: Seen, kept: mx.array | None = None) -> mx.array:
        """N T E: what the last layer takes; what is known before it is read comes first."""
        now, before = unit(seen.now), unit(seen.before)
        earlier = mx.einsum("npw,pwe->ne", before, self.before)
        each = mx.einsum("ntw,twe->nte", now, self.now)
        x = gelu(mx.cumsum(each, axis=1) + earlier[:, None] + self.bias)
        x = gelu(mx.einsum("nte,tef->ntf", x, self.middle))
        x = x if kept is None else x * kept
        told = (mx.concatenate([path(now), seen.facts], axis=-1) - self.zero) / self.size
        return mx.concatenate([x, mx.ones((*told.shape[:2], 1)), told, unit(seen.read)], axis=-1)

    def say(self, features: mx.array) -> Told:
        hope = (features[..., : self.first.shape[1]] * self.first).sum(-1)
        return parted(mx.einsum("nte,teo->nto", features, self.last), hope)

    def begun(self, before: mx.array) -> Carried:
        """A tap at a time instead: `before` is ... P W."""
        return Carried(-1, unit(before).flatten(-2) @ self.before.flatten(0, 1), None, None)

    def onward(self, given: Carried, state: mx.array) -> Carried:
        """With the next tap's state, ... W."""
        tap, now = given.tap + 1, unit(state)
        total = given.sum + now @ self.now[tap]
        x = gelu(gelu(total + self.bias[tap]) @ self.middle[tap])
        one = mx.ones_like(now[..., :1])
        turned = one if given.state is None else (now * given.state).mean(-1, keepdims=True)
        turned = (turned - self.zero[tap, :1]) / self.size[tap, :1]
        return Carried(tap, total, now, mx.concatenate([x, one, turned], axis=-1))

    def hope(self, given: Carried) -> mx.array:
        return given.known @ self.first[given.tap]

    def told(self, given: Carried, read: mx.array, facts: mx.array) -> Told:
        """Of the last tap."""
        tap = given.tap
        facts = (facts - self.zero[tap, 1:]) / self.size[tap, 1:]
        features = mx.concatenate([given.known, facts, unit(read)], axis=-1)
        return parted(features @ self.last[tap], self.hope(given))


def parted(said: mx.array, hope: mx.array) -> Told:
    """The first logit of a route is the log-odds of accepting: those of all others add up to one."""
    n = len(ROUTES)
    first, others = said[..., :1], said[..., 1:n]
    route = mx.concatenate([first, others - mx.logsumexp(others, axis=-1, keepdims=True)], axis=-1)
    return Told(route, said[..., n], said[..., n + 1], hope, said[..., n + 2 :])


def gelu(x: mx.array) -> mx.array:
    """Its tanh form by a sigmoid, the cube spelled out: half the time on a CPU."""
    return x * mx.sigmoid(1.5957691216057308 * (x + 0.044715 * (x * x * x)))


def unit(x: mx.array) -> mx.array:
    return x * mx.rsqrt(mx.square(x).mean(-1, keepdims=True) + UNIT)


def path(now: mx.array) -> mx.array:
    """N T 1: how far the state turned since the tap before."""
    turned = (now[:, 1:] * now[:, :-1]).mean(-1, keepdims=True)
    return mx.concatenate([mx.ones_like(now[:, :1, :1]), turned], axis=1)


class Truth(NamedTuple):
    route: mx.array  # N T
    vitality: mx.array  # N T, nan where nothing was disturbed
    agrees: mx.array  # N T
    sure: mx.array  # N T: the teacher's share of its first choice
    earliest: mx.array  # N


def loss(head: Head, seen: Seen, truth: Truth, kept: mx.array | None = None) -> Sums:
    return missed(head(seen, kept), truth)


def missed(told: Told, truth: Truth) -> Sums:
    route = nn.losses.cross_entropy(told.route, truth.route)
    asked = mx.isfinite(truth.vitality)
    vitality = nn.losses.binary_cross_entropy(told.vitality, mx.where(asked, truth.vitality, 0), reduction="none")
    leave = nn.losses.binary_cross_entropy(told.leave, truth.agrees, reduction="none")
    hope = nn.losses.binary_cross_entropy(told.hope, truth.sure, reduction="none")
    earliest = nn.losses.cross_entropy(told.earliest, mx.broadcast_to(truth.earliest[:, None], route.shape))
    whole = route + mx.where(asked, vitality, 0) + leave + hope + 0.5 * earliest
    return whole.sum(), mx.array(float(route.size))
