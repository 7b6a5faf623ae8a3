"""What is true of a state: how far the lens is from the teacher there, and how much disturbance it would survive.

The lens is the final norm and head applied to the state as it is. Vitality is the share of small disturbances after
which going on from the state still gives the teacher's token: noise on the state, and blocks above it left out. Above
the last block that makes keys and values no position sees another's state, so all positions are disturbed at once.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx

from agp.exponentials import exp
from agp.fused import CPU
from agp.models.decoder import Decoder, Stream
from agp.sites import Site, skip
from heads.glimpse import LEAST

MOST = 1 << 24  # logits that may be there at once, where a GPU is to be filled
ROOM = 1 << 19 if CPU else MOST  # as many as the caches of a CPU hold: twice as fast there


class Reading(NamedTuple):
    """Of each state, N T: how the lens reads it, beside the teacher's distribution over the next token."""

    divergence: mx.array  # KL(teacher || lens), nats
    agrees: mx.array  # the same token is likeliest
    margin: mx.array  # between the lens's first and second logit
    doubt: mx.array  # log of what the lens gives to all but its first: where it is sure, 1 - share has no digits left
    entropy: mx.array  # of the lens, nats


class Taught(NamedTuple):
    """The teacher's distribution, N K: its likeliest tokens in falling order, and the log of each one's share."""

    ids: mx.array
    logs: mx.array


def read(model: Decoder, states: mx.array, final: mx.array, keep: int) -> tuple[Reading, Taught]:
    """`states` N T D and `final` N D are those that the final norm is for; few enough at a time for any vocabulary."""
    readings, taught = [], []
    for teacher, reading in beside(model, model.norm(states), final):
        readings.append(reading)
        taught.append(likeliest(teacher, keep))
        mx.eval(readings[-1], taught[-1])
    return joined(Reading, readings), joined(Taught, taught)


def some(names: Sequence[str], model: Decoder, normed: mx.array, final: mx.array) -> list[mx.array]:
    """Of a `Reading` only these; states are as the model's head takes them."""
    found = []
    for _, reading in beside(model, normed, final):
        found.append([getattr(reading, name) for name in names])
        mx.eval(found[-1])
    return [mx.concatenate(list(of)) for of in zip(*found, strict=True)]


def beside(model: Decoder, normed: mx.array, final: mx.array) -> Iterator[tuple[mx.array, Reading]]:
    """The teacher's shares and what is read, a few at a time; nothing is computed yet."""
    few = max(1, ROOM // (model.config.vocab_size * (normed.shape[1] + 1)))
    for at in range(0, len(final), few):
        teacher, lens = said(model, model.norm(final[at : at + few])), said(model, normed[at : at + few])
        yield teacher.logs, compared(Said(*(of[:, None] for of in teacher)), lens)


class Said(NamedTuple):
    """Of all tokens, ... V: each one's share, and its log. One exponential makes both."""

    logs: mx.array
    shares: mx.array


def said(model: Decoder, normed: mx.array) -> Said:
    logits = model.head(normed).astype(mx.float32)
    above = logits - mx.stop_gradient(logits.max(-1, keepdims=True))
    weights = exp(above)
    total = weights.sum(-1, keepdims=True)
    return Said(above - mx.log(total), weights / total)


def shares(model: Decoder, states: mx.array) -> mx.array:
    """Logs of the shares of all tokens."""
    return said(model, model.norm(states)).logs


def compared(teacher: Said, lens: Said) -> Reading:
    best = mx.argmax(lens.logs, axis=-1, keepdims=True)
    first = mx.take_along_axis(lens.logs, best, axis=-1)
    others = mx.arange(lens.logs.shape[-1]) != best
    second = mx.where(others, lens.logs, -mx.inf).max(-1, keepdims=True)
    return Reading(
        divergence=(teacher.shares * (teacher.logs - lens.logs)).sum(-1),
        agrees=(best == mx.argmax(teacher.logs, axis=-1, keepdims=True))[..., 0],
        margin=(first - second)[..., 0],
        doubt=mx.log(mx.maximum(mx.where(others, lens.shares, 0).sum(-1), LEAST)),
        entropy=-(lens.shares * lens.logs).sum(-1),
    )


def likeliest(teacher: mx.array, keep: int) -> Taught:
    some = mx.argpartition(-teacher, min(keep, teacher.shape[-1] - 1), axis=-1)[:, :keep]
    logs = mx.take_along_axis(teacher, some, axis=-1)
    order = mx.argsort(-logs, axis=-1)
    return Taught(mx.take_along_axis(some, order, axis=-1).astype(mx.int32), mx.take_along_axis(logs, order, axis=-1))


def joined(kind, parts):
    return kind(*(mx.concatenate(list(of)) for of in zip(*parts, strict=True)))


def vitality(
    model: Decoder,
    stream: Stream,
    tap: int,
    tokens: mx.array,
    *,
    sigma: float,
    noises: int,
    omissions: int,
    key: mx.array,
) -> mx.array:
    """B n: the share of disturbances that the teacher's `tokens` (B n) survive, from the state after block `tap`."""
    hidden = stream.hidden
    size = mx.sqrt(mx.square(hidden).mean(-1, keepdims=True))
    survived = mx.zeros(tokens.shape)
    above = list(range(tap + 1, model.config.num_layers))
    key, omitted = mx.random.split(key)
    for _ in range(noises):
        key, now = mx.random.split(key)
        moved = hidden + sigma * size * mx.random.normal(hidden.shape, key=now)
        survived = survived + (went_on(model, stream._replace(hidden=moved), tap, []) == tokens)
        mx.eval(survived)
    left_out = chosen(above, omissions, omitted)
    for block in left_out:
        survived = survived + (went_on(model, stream, tap, [block]) == tokens)
        mx.eval(survived)
    return survived / (noises + len(left_out))


def went_on(model: Decoder, stream: Stream, tap: int, without: Sequence[int]) -> mx.array:
    """The likeliest token after the remaining blocks; capped or not, the same logit is largest."""
    out = model.blocks(stream, start=tap + 1, visit=skip([Site(block, "block") for block in without]))
    states = model.normed(out.hidden)
    few = max(1, ROOM // (model.config.vocab_size * len(states)))
    found = []
    for at in range(0, states.shape[1], few):
        found.append(mx.argmax(model.uncapped(states[:, at : at + few]), axis=-1))
        mx.eval(found[-1])
    return mx.concatenate(found, axis=1)


def chosen(blocks: list[int], count: int, key: mx.array) -> list[int]:
    order = mx.random.permutation(len(blocks), key=key) if blocks else mx.array([])
    picked: list[int] = order[:count].tolist()  # type: ignore[assignment]
    return [blocks[i] for i in sorted(picked)]
