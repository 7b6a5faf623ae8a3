"""The trajectory head and its glance as arithmetic on columns: all taps, for all positions at once."""

import math
from typing import NamedTuple

import numpy as np

from export.ops import Columns, Ops, numbers
from heads import glimpse, trajectory
from heads.glimpse import LEAST
from heads.trajectory import ROUTES, UNIT

NEVER = -1e4  # of which no exponential is left


class Said(NamedTuple):
    """At one tap: logits, and of routes what makes shares of them."""

    route: Columns
    vitality: Columns
    leave: Columns
    hope: Columns
    earliest: Columns


def glance(o: Ops, head: glimpse.Head, read: Columns) -> Columns:
    """FACTS of what the final norm read.

    All but the first choice is added up beside the largest of it, not beside the first: so the log of its share is
    exact where half precision has no number for that share.
    """
    capped = lambda x: x if head.config.cap is None else o.mul(o.unary("tanh", x), head.config.cap)
    by = 1.0 if head.config.cap is None else 1 / head.config.cap
    logits, alone = (capped(o.conv(read, by * numbers(of))) for of in (head.rows, head.rest[None]))
    first, rest = o.reduce("max", logits), o.add(alone, math.log(head.config.others))
    below, ones = (o.where(logits, first, there, b) for there, b in ((NEVER, logits), (1.0, o.mul(logits, 0.0))))
    again = o.sub(o.reduce("sum", ones), 1.0)
    second = o.where(again, 0.5, first, o.reduce("max", below))
    most = o.binary("maximum", second, rest)
    share = o.add(o.reduce("sum", o.exp(below, most)), o.exp(rest, most))
    share = o.add(share, o.mul(again, o.exp(o.binary("minimum", first, most), most)))
    others = o.sub(o.add(most, o.unary("log", share)), first)
    others = o.add(o.softplus(o.sub(others, math.log(LEAST))), math.log(LEAST))
    whole, gap = o.softplus(others), o.sub(first, second)
    apart = o.reduce("sum", o.mul(o.exp(logits, first), o.sub(first, logits)))
    apart = o.add(apart, o.mul(o.exp(rest, first), o.sub(first, alone)))
    entropy = o.add(whole, o.mul(apart, o.unary("exp", o.mul(whole, -1.0))))
    sure = o.mul(whole, -1.0)
    return o.concat([sure, o.sub(others, whole), gap, entropy, first, o.binary("minimum", gap, head.config.clear)])


def taps(
    o: Ops, head: trajectory.Head, states: list[Columns], before: Columns, read: list[Columns], facts: list[Columns]
) -> list[Said]:
    """`before` is of the first tap, of the positions before the first of these, from far to near."""
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
        found.append(said(o, head, tap, total, turned(o, now, last), read[tap], facts[tap]))
        last = now
    return found


def said(
    o: Ops,
    head: trajectory.Head,
    tap: int,
    total: Columns,
    turned: Columns | None,
    read: Columns,
    facts: Columns,
) -> Said:
    x = o.gelu(o.add(total, numbers(head.bias[tap])))
    x = o.gelu(o.conv(x, numbers(head.middle[tap]).T))
    known = [x] if turned is None else [x, turned]
    weight, bias = folded(head, tap, numbers(head.last[tap]), turned is None)
    told = o.conv(o.concat([*known, facts, o.norm(read, UNIT)]), weight, bias)
    weight, bias = folded(head, tap, numbers(head.first[tap])[:, None], turned is None)
    n = len(ROUTES)
    others = o.cut(told, 1, n)
    route = o.concat([o.cut(told, 0, 1), o.sub(others, o.logsumexp(others))])
    rest = o.cut(told, n + 2, n + 3 + head.config.taps)
    return Said(route, o.cut(told, n, n + 1), o.cut(told, n + 1, n + 2), o.conv(o.concat(known), weight, bias), rest)


def folded(head: trajectory.Head, tap: int, rows: np.ndarray, first: bool) -> tuple[np.ndarray, np.ndarray]:
    """A weight and its bias for features as they are.

    Rows are of what was learned, of one, of the path and the facts to unit size, and of what was read. At the first tap
    the path is one.
    """
    hidden, zero, size = head.config.hidden, numbers(head.zero[tap]), numbers(head.size[tap])
    learned, one, plain, read = np.split(rows, [hidden, hidden + 1, hidden + 1 + len(size)])
    zero, size = zero[: len(plain)], size[: len(plain)]
    plain, bias = plain / size[:, None], one[0] - (zero / size) @ plain
    if first:
        bias, plain = bias + plain[0], plain[1:]
    return np.concatenate([learned, plain, read]).T, bias


def turned(o: Ops, now: Columns, last: Columns | None) -> Columns | None:
    """How far the state turned since the tap before."""
    return None if last is None else o.mul(o.reduce("sum", o.mul(now, last)), 1 / o.shape(now)[0])
