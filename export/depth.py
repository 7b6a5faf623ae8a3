"""A depth module as arithmetic on columns: taps mixed, then attention to keys and values that the host hands over.

Keys are as the cache holds them, turned by their positions, one column each; the host says by cosines and sines how
queries are turned, and by a mask what each may see. All heads of a kind share a mask.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from agp.models.decoder import Decoder
from export.ops import Columns, Ops, numbers
from heads.depth import Head, linear
from heads.trajectory import UNIT

HIDDEN = -4e4  # added to a score, nothing is left of it


class Past(NamedTuple):
    """What is handed over of one kind of attention."""

    keys: Columns  # channels of all key heads, a column each
    values: Columns
    mask: Columns  # as many channels as there are keys: 0 or HIDDEN
    cos: Columns  # half a head's channels
    sin: Columns


def together(o: Ops, decoder: Decoder, state: Columns) -> Columns:
    """Gemma 3n's streams as one, to a size that the norm which follows takes off; others have one."""
    matrices: Any = getattr(decoder, "altup_unembed_projections", [])
    if not matrices:
        return state
    dim = o.shape(state)[0] // (len(matrices) + 1)
    total = o.norm(o.cut(state, 0, dim), UNIT)
    for number, matrix in enumerate(matrices, 1):
        stream = o.cut(state, number * dim, (number + 1) * dim)
        total = o.add(total, o.norm(o.conv(stream, numbers(linear(matrix).weight)), UNIT))
    return total


def module(
    o: Ops, head: Head, before: Sequence[Columns], last: Columns, past: dict[str, Past]
) -> tuple[Columns, Columns]:
    """The mended state, and how much each tap counted; `before` are first streams, `last` is all brought together."""
    sources = [o.norm(of, head.eps) for of in (*before, last)]
    asked, bias, scale = numbers(head.asked), numbers(head.bias), numbers(head.scale)
    said = [o.conv(of, asked[tap : tap + 1], bias[tap : tap + 1]) for tap, of in enumerate(sources)]
    weights, mixed = o.softmax(o.concat(said)), None
    for tap, of in enumerate(sources):
        part = o.mul(of, o.mul(o.cut(weights, tap, tap + 1), float(scale[tap, 0])))
        mixed = part if mixed is None else o.add(mixed, part)
    x = asks = o.norm(mixed, head.eps)
    for kind, attention in head.attention.items():
        queries = numbers(attention.q_proj.weight) * numbers(head.before_attention)
        told = attended(o, attention, o.conv(asks, queries), past[kind])
        x = o.add(x, o.conv(told, numbers(attention.o_proj.weight)))
    y, gain = o.norm(x, head.eps), numbers(head.before_mlp)
    gate, up = (o.conv(y, numbers(of.weight) * gain) for of in (head.gate, head.up))
    return o.add(x, o.conv(o.mul(o.gelu(gate), up), numbers(head.down.weight))), weights


def attended(o: Ops, attention: Any, queries: Columns, past: Past) -> Columns:
    """Channels of all query heads; those that follow each other share a key head."""
    size, gain = attention.head_dim, numbers(attention.q_norm.weight)
    count, held = o.shape(queries)[0] // size, o.shape(past.keys)[0] // size
    found = []
    for number in range(count):
        one = o.mul(o.norm(o.cut(queries, number * size, (number + 1) * size), attention.eps), gain)
        at = number * held // count * size
        keys, values = o.cut(past.keys, at, at + size), o.cut(past.values, at, at + size)
        shares = o.softmax(o.add(o.match(keys, turned(o, one, past)), past.mask))
        found.append(o.blend(values, shares))
    return o.concat(found)


def turned(o: Ops, x: Columns, past: Past) -> Columns:
    half = o.shape(x)[0] // 2
    a, b = o.cut(x, 0, half), o.cut(x, half, 2 * half)
    first = o.sub(o.mul(a, past.cos), o.mul(b, past.sin))
    return o.concat([first, o.add(o.mul(b, past.cos), o.mul(a, past.sin))])


def handed(attention: Any, place: Any, keys: Any, values: Any, count: int, room: int) -> dict[str, np.ndarray]:
    """What the host hands over for the last `count` tokens of one text, in columns: `keys` and `values` are H S K."""
    end, queries = place.end, np.arange(place.end - count, place.end)
    at = np.arange(end - keys.shape[1], end)
    seen = at[:, None] <= queries[None]
    if attention.window is not None:
        seen &= at[:, None] > queries[None] - attention.window
    return past(keys, values, seen, attention.rope.angles(end - count, count), room)


def past(keys: Any, values: Any, seen: np.ndarray, angles: Any, room: int) -> dict[str, np.ndarray]:
    """Likewise, of what each token may see, S n, and the cosines and sines by which it is turned."""
    length, count = seen.shape
    if length > room:
        raise ValueError(f"{length} keys are there, and the program was made for {room}; ask for more: --room")
    mask = np.full((room, count), HIDDEN)
    mask[:length] = np.where(seen, 0, HIDDEN)
    columns = {"keys": flat(keys), "values": flat(values)}
    columns = {name: np.pad(of, ((0, 0), (0, room - length))) for name, of in columns.items()}
    columns |= {"mask": mask} | {name: np.array(of).T for name, of in zip(("cos", "sin"), angles, strict=True)}
    return {name: of[None, :, None].astype(np.float64) for name, of in columns.items()}


def flat(kept: Any) -> np.ndarray:
    """H S K to the channels of all heads by position."""
    return np.moveaxis(np.array(kept), 1, 2).reshape(-1, kept.shape[1])
