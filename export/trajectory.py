"""The trajectory head and its glance as arithmetic on columns: all taps, for all positions at once."""

import math
from typing import NamedTuple

import numpy as np

from export.ops import Columns, Ops, numbers
from heads import glimpse, trajectory
from heads.glimpse import LEAST
from heads.trajectory import ROUTES, UNIT

SMALL = 1e-4  # size of a state that says nothing
NEVER = -1e3  # by the cap: of which no exponential is left, of a difference to it either


class Said(NamedTuple):
    """At one tap: logits, and of routes what makes shares of them."""

    route: Columns
    vitality: Columns
    leave: Columns
    earliest: Columns


def glance(o: Ops, head: glimpse.Head, state: Columns, gain: np.ndarray) -> Columns:
    """FACTS of what the final norm, with this gain, makes of a state.

    All but the first choice is added up beside the largest of it, not beside the first: so the log of its share is
    exact where half precision has no number for that share.
    """
    cap = head.config.cap or 1.0
    logits, alone, height = heights(o, head, state, gain)
    apart = lambda x, y: o.mul(o.sub(x, y), cap)
    share = lambda x, y: o.unary("exp", apart(x, y))
    first, rest = o.reduce("max", logits), o.add(alone, math.log(head.config.others) / cap)
    below, ones = (o.where(logits, first, there, b) for there, b in ((NEVER, logits), (1.0, o.mul(logits, 0.0))))
    again = o.sub(o.reduce("sum", ones), 1.0)
    second = o.where(again, 0.5, first, o.reduce("max", below))
    most = o.binary("maximum", second, rest)
    shares = o.add(o.reduce("sum", share(below, most)), share(rest, most))
    shares = o.add(shares, o.mul(again, share(o.binary("minimum", first, most), most)))
    others = o.add(apart(most, first), o.unary("log", shares))
    others = o.add(o.softplus(o.sub(others, math.log(LEAST))), math.log(LEAST))
    whole, gap = o.softplus(others), apart(first, second)
    part = lambda x: o.unary(
        "exp", o.sub(apart(x, first), whole)
    )  # of the whole: all others may be 65,504 times the first
    missed = o.reduce("sum", o.mul(part(logits), apart(first, logits)))
    entropy = o.add(whole, o.add(missed, o.mul(part(rest), apart(first, alone))))
    sure, lead = o.mul(whole, -1.0), o.binary("minimum", gap, head.config.clear)
    return o.concat([sure, o.sub(others, whole), gap, entropy, o.mul(o.add(height, first), cap), lead])


def heights(o: Ops, head: glimpse.Head, state: Columns, gain: np.ndarray) -> tuple[Columns, Columns, Columns]:
    """Logits of the tokens looked at and of the rest, by their cap, and from where they are counted: near the largest.

    It is taken off within the sum, before that is rounded, and the state's size after: so choices close to each other
    keep the digits by which they differ. tanh(a + b) - tanh(a) is tanh(b) / cosh(a)^2 / (1 + tanh(a) tanh(b)).
    """
    cap = head.config.cap or 1.0
    rows, rest = numbers(head.rows) * gain / cap, numbers(head.rest)[None] * gain / cap
    there = o.reduce("max", o.conv(state, rows))
    both, size = o.concat([state, there]), o.binary("maximum", o.mul(*o.size(state, UNIT)), SMALL)
    counted = (o.conv(both, np.concatenate([of, -np.ones((len(of), 1))], axis=1)) for of in (rows, rest))
    more, alone, there = (o.binary("div", of, size) for of in (*counted, there))
    if head.config.cap is None:
        return more, alone, there
    bent = o.unary("tanh", there)
    steep = o.binary(
        "div", o.add(o.mul(there, 0.0), 2.0), o.add(o.unary("exp", there), o.exp(o.mul(there, 0.0), there))
    )
    steep = o.mul(steep, steep)

    def capped(x: Columns) -> Columns:
        x = o.unary("tanh", x)
        return o.binary("div", o.mul(x, steep), o.add(o.mul(x, bent), 1.0))

    return capped(more), capped(alone), bent


def seen(o: Ops, head: trajectory.Head, states: list[Columns], before: Columns) -> list[Columns]:
    """What is known at each tap before its state is read: what was learned, and from the second tap on the path.

    `before` is of the first tap, of the positions before the first of these, from far to near.
    """
    found, total, last = [], None, None
    for tap, state in enumerate(states):
        now = o.norm(state, UNIT)
        own = o.conv(now, numbers(head.now[tap]).T)
        if tap == 0:
            row = o.concat([o.norm(before, UNIT), now], along=3)
            near = numbers(head.before)[::-1]  # P W E, from far to near
            row = o.cut(row, 0, o.shape(row)[1] - 1, along=3)
            total = o.add(own, o.conv(row, near.transpose(2, 1, 0)))
        else:
            total = o.add(total, own)
        x = o.gelu(o.add(total, numbers(head.bias[tap])))
        x = o.gelu(o.conv(x, numbers(head.middle[tap]).T))
        found.append(x if last is None else o.concat([x, turned(o, now, last)]))
        last = now
    return found


def said(o: Ops, head: trajectory.Head, tap: int, known: Columns, read: Columns, facts: Columns) -> Said:
    weight, bias = folded(head, tap, numbers(head.last[tap]))
    told = o.conv(o.concat([known, facts, o.norm(read, UNIT)]), weight, bias)
    n = len(ROUTES)
    others = o.cut(told, 1, n)
    route = o.concat([o.cut(told, 0, 1), o.sub(others, o.logsumexp(others))])
    rest = o.cut(told, n + 2, n + 3 + head.config.taps)
    return Said(route, o.cut(told, n, n + 1), o.cut(told, n + 1, n + 2), rest)


def hope(o: Ops, head: trajectory.Head, tap: int, known: Columns) -> Columns:
    return o.conv(known, *folded(head, tap, numbers(head.first[tap])[:, None]))


def folded(head: trajectory.Head, tap: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A weight and its bias for features as they are.

    Rows are of what was learned, of one, of the path and the facts to unit size, and of what was read. At the first tap
    the path is one.
    """
    hidden, zero, size = head.config.hidden, numbers(head.zero[tap]), numbers(head.size[tap])
    learned, one, plain, read = np.split(rows, [hidden, hidden + 1, hidden + 1 + len(size)])
    zero, size = zero[: len(plain)], size[: len(plain)]
    plain, bias = plain / size[:, None], one[0] - (zero / size) @ plain
    if tap == 0:
        bias, plain = bias + plain[0], plain[1:]
    return np.concatenate([learned, plain, read]).T, bias


def turned(o: Ops, now: Columns, last: Columns) -> Columns:
    """How far the state turned since the tap before."""
    return o.mul(o.reduce("sum", o.mul(now, last)), 1 / o.shape(now)[0])
