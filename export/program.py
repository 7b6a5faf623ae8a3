"""All heads of a run as one description: what each entry of the package takes, and what it says of it.

`one` is for a token that is being made, `many` for 64 of a prompt; both take all taps at once. Before a later tap is
reached its state may be zeros: nothing said of a tap hangs on one above it.
`receive_one` and `receive_many` are the other host's: a state from what was sent.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from agp.peak import kv_heads
from export import depth, semantic, trajectory, transfer
from export.ops import Columns, Entry, Ops, numbers
from heads.bundle import Bundle
from heads.codec import Integers, Raw
from heads.trajectory import Head

MANY = 64
PAST = depth.Past._fields

UNITS = {
    "states": "after each tap in turn, Gemma 3n's four streams side by side; zeros for taps that are not reached yet",
    "before": "at the first tap, of the positions before, from far to near; zeros where there is none",
    "told": "the model's vector of the token that stands there",
    "keys": "as the cache holds them, a position a column, of all key heads; zeros where there is none",
    "values": "likewise",
    "mask": f"0 where a position may look, {depth.HIDDEN:.0f} elsewhere; as many channels as there is room for keys",
    "cos": "of the angles by which queries are turned, half a head",
    "sin": "likewise",
    "route": "of each tap, logits of accept_local, continue_local, revive_local, escalate; the first is a log-odds",
    "vitality": "of each tap, the log-odds that its token survives a disturbance",
    "leave": "of each tap, the log-odds that what would be said there is what full depth says",
    "earliest": "of each tap, logits of the first tap that is enough; the last is none",
    "hope": "of each tap, the log-odds that the full model will be sure: whether to look is worth its cost",
    "mended": "of each tap, the state that the depth module mends, as the model's head takes it",
    "_mended": "what is said with that state instead",
    "mixing": "of each tap, the shares of the taps up to it in its mended state",
    "concepts": "logits, in the order that decisions.concepts names them",
    "latents": "how much there is of each, concepts first; 0 where it is not active",
    "size": "of a codec: the level of the state's size on the way out, the size itself on the way in",
    "levels": "of a codec: from the middle of its levels, to be rounded to one that there is",
    "state": "of a codec: as it was restored",
}


def entries(bundle: Bundle, room: int) -> dict[str, Entry]:
    """By name; at most `room` keys of each kind are handed over."""
    check(bundle)
    found = {}
    for name, count in (("one", 1), ("many", MANY)):
        found[name] = Entry(taken(bundle, count, room), partial(say, bundle))
        found[f"receive_{name}"] = Entry(received(bundle, count), partial(receive, bundle))
    return found


def check(bundle: Bundle) -> None:
    """Both trajectory heads read states alike: what they have of them is computed once."""
    for name in ("now", "before", "bias", "middle"):
        if not mx.array_equal(bundle.plain[name], bundle.late[name]):
            raise ValueError(f"calibrate changed {name} of the trajectory head, which only the trajectory stage learns")


def senders(bundle: Bundle) -> dict[str, Any]:
    """The codecs that were learned, by name: transfer's heads, or what stands for them."""
    return {name: of for name, of in bundle.codecs.items() if not isinstance(of, Raw | Integers)}


def taken(bundle: Bundle, count: int, room: int) -> dict[str, tuple[int, int]]:
    shape = bundle.plain.config
    found = {"states": (shape.taps * shape.width, count), "before": (shape.width, shape.window - 1)}
    found |= {"told": (next(iter(senders(bundle).values())).config.told, count)} if senders(bundle) else {}
    kept = kv_heads(bundle.decoder.config)
    for kind, attention in bundle.modules[0].attention.items():
        size, keys = attention.head_dim, kept[lent(bundle, kind)]
        sizes = ((keys * size, room), (keys * size, room), (room, count), (size // 2, count), (size // 2, count))
        found |= {f"{name}_{kind}": of for name, of in zip(PAST, sizes, strict=True)}
    return found


def lent(bundle: Bundle, kind: str) -> int:
    """The block that makes keys of this kind for those above."""
    config = bundle.decoder.config
    return next(block for block in config.lenders if config.layer_types[block] == kind)


def say(bundle: Bundle, o: Ops, given: Mapping[str, Columns]) -> dict[str, Columns]:
    """Of taps in turn, side by side; `_mended` is what is said with the depth module in place."""
    shape = bundle.plain.config
    states = [o.cut(given["states"], tap * shape.width, (tap + 1) * shape.width) for tap in range(shape.taps)]
    past = {kind: depth.Past(*(given[f"{name}_{kind}"] for name in PAST)) for kind in bundle.modules[0].attention}
    whole = [depth.together(o, bundle.decoder, state) for state in states]
    mended, mixing = mend(bundle, o, states, whole, past)
    known = trajectory.seen(o, bundle.late, states, given["before"])
    found = looked(bundle, o, bundle.plain, known, whole, "")
    found |= looked(bundle, o, bundle.late, known, mended, "_mended")
    found["hope"] = o.concat([trajectory.hope(o, bundle.late, tap, of) for tap, of in enumerate(known)])
    found |= {"mended": o.concat([read(bundle, o, of) for of in mended]), "mixing": o.concat(mixing)}
    concepts, found["latents"] = semantic.code(o, bundle.names, states[bundle.taps.index(bundle.named)])
    found |= {} if concepts is None else {"concepts": concepts}
    for name, head in senders(bundle).items():
        size, levels = transfer.sent(o, head, name, states[bundle.taps.index(bundle.sent)], given["told"])
        found |= {f"size_{name}": size, f"levels_{name}": levels}
    return found


def mend(
    bundle: Bundle, o: Ops, states: list[Columns], whole: list[Columns], past: dict[str, depth.Past]
) -> tuple[list[Columns], list[Columns]]:
    """By each tap's module: the state, for the final norm, and how much each tap counted."""
    dim = bundle.decoder.config.hidden_size
    firsts, mended, mixing = [o.cut(state, 0, dim) for state in states], [], []
    for tap, head in enumerate(bundle.modules):
        state, weights = depth.module(o, head, firsts[:tap], whole[tap], past)
        mended.append(state)
        mixing.append(weights)
    return mended, mixing


def looked(
    bundle: Bundle, o: Ops, head: Head, known: list[Columns], states: list[Columns], suffix: str
) -> dict[str, Columns]:
    """What a trajectory head says of all taps, of states for the final norm."""
    gain, said = numbers(bundle.decoder.norm.weight), []
    for tap, state in enumerate(states):
        facts = trajectory.glance(o, bundle.glance, state, gain)
        said.append(trajectory.said(o, head, tap, known[tap], read(bundle, o, state), facts))
    return {f"{name}{suffix}": o.concat([getattr(of, name) for of in said]) for name in trajectory.Said._fields}


def read(bundle: Bundle, o: Ops, state: Columns) -> Columns:
    """As the final norm reads it."""
    return o.mul(o.norm(state, bundle.decoder.config.rms_norm_eps), numbers(bundle.decoder.norm.weight))


def received(bundle: Bundle, count: int) -> dict[str, tuple[int, int]]:
    found = {}
    for name, head in senders(bundle).items():
        found |= {f"size_{name}": (1, count), f"values_{name}": (len(head.config.levels), count)}
        found["told"] = (head.config.told, count)
    return found


def receive(bundle: Bundle, o: Ops, given: Mapping[str, Columns]) -> dict[str, Columns]:
    """`values` and `size` are what the levels that came stand for."""
    return {
        f"state_{name}": transfer.received(o, head, given[f"size_{name}"], given[f"values_{name}"], given["told"])
        for name, head in senders(bundle).items()
    }


def receiving(bundle: Bundle, states: mx.array, told: mx.array) -> dict[str, np.ndarray]:
    """What the host that receives would hand over, were these N W sent, with vectors N K of their tokens."""
    found = {"told": columns(told)}
    for name, head in senders(bundle).items():
        codes, counts = np.array(head.codes(states, told)), np.array(head.config.levels)
        found[f"size_{name}"] = columns(transfer.size(codes[:, :1], numbers(head.span)))
        found[f"values_{name}"] = columns(transfer.values(codes[:, 1:] - (counts - 1) / 2, counts))
    return found


def columns(rows: Any) -> np.ndarray:
    return np.array(rows, np.float64).T[None, :, None]
