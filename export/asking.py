"""A run's heads asked of their package while text is made: a call of its entry for one token an ask, row and position.

The package says all taps at once, of the states there are and zeros above them. It is handed the keys that the position
may see and no others: what was taken back, padding, and what a window has left behind take no room.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.cache import KV
from agp.layers import Place
from export import depth
from export.trajectory import Said
from heads.bundle import Asked, Bundle, Look, flat
from heads.trajectory import ROUTES, Told

Say = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]  # columns in and out, by name


class Begun(NamedTuple):
    tap: int  # -1 before the first
    before: mx.array  # B n P W, the nearest first


class Package:
    """In MLX's place."""

    def __init__(self, bundle: Bundle, say: Say, inputs: Mapping[str, tuple[int, int]]):
        self.bundle, self.say = bundle, say
        self.nothing = {name: np.zeros((1, channels, 1, count)) for name, (channels, count) in inputs.items()}

    def begun(self, before: mx.array) -> Begun:
        return Begun(-1, before)

    def ask(self, carried: Begun, states: mx.array, place: Place, shared: Mapping[str, KV]) -> Asked:
        tap, (rows, size) = carried.tap + 1, states.shape[1:3]
        below = np.array(mx.concatenate([flat(state) for state in states], axis=-1).astype(mx.float32))
        before = np.array(carried.before.astype(mx.float32))
        kinds = {kind: Seen(of, place, shared[kind], size) for kind, of in self.bundle.modules[0].attention.items()}
        said = []
        for row, n in np.ndindex(rows, size):
            given = {"before": before[row, n, ::-1].T[None, :, None]}
            for kind, seen in kinds.items():
                room = self.nothing[f"keys_{kind}"].shape[3]
                given |= {f"{name}_{kind}": of for name, of in seen.by(row, n, room).items()}
            said.append(self.told(below[row, n], given))
        found = {name: mx.array(np.stack([of[name] for of in said]).reshape(rows, size, -1)) for name in said[0]}
        return Asked(found["hope"][..., tap], Begun(tap, carried.before), lambda: looked(found, tap))

    def concepts(self, state: mx.array) -> list[tuple[str, ...]]:
        names, limits = self.bundle.names.config.concepts, np.array(self.bundle.names.limits)
        rows = np.array(flat(state).astype(mx.float32)).reshape(-1, self.bundle.names.config.state)
        below = np.zeros((len(rows), self.bundle.taps.index(self.bundle.named) * rows.shape[1]))
        if not names:
            return [()] * len(rows)
        scores = (self.told(of, {})["concepts"] for of in np.concatenate([below, rows], axis=1))
        return [tuple(name for name, there in zip(names, of > limits, strict=True) if there) for of in scores]

    def told(self, states: np.ndarray, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of one position; what it is not given is nothing."""
        feed: dict[str, Any] = {**self.nothing, **given}
        feed["states"] = np.zeros_like(self.nothing["states"])
        feed["states"][0, : len(states), 0, 0] = states
        said = self.say({name: of.astype(np.float16) for name, of in feed.items()})
        return {name: np.asarray(of, np.float32).reshape(-1) for name, of in said.items()}


def looked(said: Mapping[str, mx.array], tap: int) -> tuple[mx.array, Look]:
    """Of what is said of all taps, what is said of one."""
    taps = said["hope"].shape[-1]
    at = lambda name, count=1: said[name][..., tap * count : (tap + 1) * count]
    of = {name: at(f"{name}_mended")[..., 0] for name in Said._fields if name not in ("route", "earliest")}
    told = Told(
        at("route_mended", len(ROUTES)), **of, hope=at("hope")[..., 0], earliest=at("earliest_mended", taps + 1)
    )
    first = tap * (tap + 1) // 2
    read = at("mended", said["mended"].shape[-1] // taps)
    return read, Look(told, said["mixing"][..., first : first + tap + 1])


class Seen:
    """What is handed over of one kind of attention, for each of the last positions of rows."""

    def __init__(self, attention: Any, place: Place, kept: KV, size: int):
        rows, _, count, _ = kept.keys.shape
        mask = place.mask(size, count, attention.window)
        whole = np.ones((size, count), bool)
        there = whole if mask is None else np.tril(whole, count - size) if mask == "causal" else np.array(mask)
        self.there = np.broadcast_to(there, (rows, 1, size, count))[:, 0]
        angles = attention.rope.angles(place.start_of(size), size)
        self.angles = [np.broadcast_to(np.array(of), (rows, 1, *of.shape[-2:]))[:, 0] for of in angles]
        self.kept = [np.array(of.astype(mx.float32)) for of in kept]

    def by(self, row: int, n: int, room: int) -> dict[str, np.ndarray]:
        at = np.flatnonzero(self.there[row, n])
        keys, values = (of[row][:, at] for of in self.kept)
        turned = [of[row, n][None] for of in self.angles]
        return depth.past(keys, values, np.ones((len(at), 1), bool), turned, room)
