"""The heads of a run, loaded together: what is asked of a token on its way up, and how its state becomes bytes.

Decoding and packets know no head. They are handed a `Router`, which is called at every tap in turn, and `Wire`s.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from agp.cache import KV
from agp.layers import Place
from agp.lossless import Drafted
from agp.models.decoder import Decoder, Stream
from agp.models.files import read_json
from agp.packet import Wire
from heads import depth, glimpse, saved, semantic, trajectory, transfer
from heads.codec import Codec, Integers, Raw
from heads.trajectory import Carried, Told

DECISIONS = ("accept", "revive", "escalate")


class Look(NamedTuple):
    """Of positions, ..., at one tap."""

    told: Told  # logits
    weights: mx.array | None = None  # how much each tap so far counted, where the state was mended


class Asked(NamedTuple):
    """Of positions, B n, at one tap."""

    hope: mx.array
    carried: Any  # along to the next tap: its number, and arrays of rows
    look: Callable[[], tuple[mx.array, Look]]  # which may cost something: the mended state, and what is said of it


class Asking(Protocol):
    """Who says what heads say while text is made."""

    def begun(self, before: mx.array) -> Any:
        """What is carried to the first tap: of positions before each, B n P W, the nearest first."""
        ...

    def ask(self, carried: Any, states: mx.array, place: Place, shared: Mapping[str, KV]) -> Asked:
        """At the last of the taps so far, T B n D (Gemma 3n: T B n 4 D)."""
        ...

    def concepts(self, state: mx.array) -> list[tuple[str, ...]]:
        """Names of what is active at each position, in their order."""
        ...


class Bundle(NamedTuple):
    decoder: Decoder
    taps: tuple[int, ...]  # blocks
    exits: tuple[int, ...]  # numbers of the taps where tokens may leave
    gate: tuple[float, ...]  # of each tap: with less hope than this nobody looks
    budget: int  # number of the last tap that is within the local budget
    limits: Mapping[str, Mapping[str, float | None]]  # thresholds: of each decision, by risk; None: never
    plain: trajectory.Head  # reads states as they are
    late: trajectory.Head  # reads mended ones
    window: int  # positions, this one included
    glance: glimpse.Head
    modules: tuple[depth.Head, ...]
    names: semantic.Head
    named: int  # the block after which it names
    codecs: Mapping[str, Codec]
    sent: int  # the block after which states are sent
    by: Asking | None = None  # who says what they say, where MLX does not
    room: int | None = None  # tokens of a text, where that is one who takes no more

    @property
    def asking(self) -> Asking:
        return self if self.by is None else self.by

    def begun(self, before: mx.array) -> Carried:
        return self.late.begun(before)

    def ask(self, carried: Carried, states: mx.array, place: Place, shared: Mapping[str, KV]) -> Asked:
        hope, carried = self.hope(states[-1], carried)

        def look() -> tuple[mx.array, Look]:
            read, weights = self.mend(states, place, shared)
            return read, self.look(carried, read)._replace(weights=weights)

        return Asked(hope, carried, look)

    def hope(self, state: mx.array, carried: Carried) -> tuple[mx.array, Carried]:
        """B n, at the next tap, whose `state` is B n D (Gemma 3n: B n 4 D); and what goes along to the one after."""
        carried = self.late.onward(carried, flat(state))
        return self.late.hope(carried), carried

    def mend(self, states: mx.array, place: Place, shared: Mapping[str, KV]) -> depth.Mended:
        """Of the taps so far, T B n D; its state is normed, B n D, as the model's head takes it."""
        state, weights = self.modules[len(states) - 1](states, place, shared)
        return depth.Mended(self.decoder.norm(state), weights)

    def read(self, state: mx.array) -> mx.array:
        """Of the state as it is, normed likewise."""
        return self.decoder.normed(state)

    def look(self, carried: Carried, read: mx.array, mended: bool = True) -> Look:
        """At the last tap that was carried along."""
        return Look((self.late if mended else self.plain).told(carried, read, self.glance(read).facts))

    def concepts(self, state: mx.array) -> list[tuple[str, ...]]:
        names = self.names.config.concepts
        code, _, _ = self.names(flat(state).reshape(-1, self.names.config.state), exactly=False)
        active = np.array(code.chosen[:, : len(names)])
        return [tuple(name for name, there in zip(names, row, strict=True) if there) for row in active]

    def wires(self) -> dict[str, Wire]:
        def of(codec: Codec) -> Wire:
            return Wire(partial(self.told, codec.pack), partial(self.told, codec.unpack), codec.bytes)

        return {name: of(codec) for name, codec in self.codecs.items()}

    def told(self, way: Callable[[Any, mx.array], Any], given: Any, tokens: mx.array) -> Any:
        return way(given, self.decoder.embed_vectors(tokens).astype(mx.float32))


class Left(NamedTuple):
    """At a tap where somebody looked."""

    leaves: mx.array  # B n
    read: mx.array  # B n D: what the model's head says of it is the token
    seen: Look


class Router:
    """Decides for one batch of replies, a position at a time; what positions before looked like is kept."""

    def __init__(self, bundle: Bundle, risk: str):
        self.bundle, self.limit = bundle, bundle.limits["revive"][risk]
        self.taps = bundle.taps[: max(bundle.exits) + 1]  # above the last exit there is nothing to ask
        self.before: mx.array | None = None  # B n P W, the nearest first
        self.carried: Any = None

    def __call__(self, states: mx.array, place: Place, shared: Mapping[str, KV]) -> Left | None:
        """At the last of the taps so far, T B 1 D: who leaves; None if nobody is worth a look."""
        tap, bundle = len(states) - 1, self.bundle
        if not tap:
            self.carried = self.begin(flat(states[0]))
        assert self.carried is not None, "a router is called at every tap, from the first on"
        hope, self.carried, look = bundle.asking.ask(self.carried, states, place, shared)
        looking = hope >= bundle.gate[tap]
        if self.limit is None or tap not in bundle.exits or not looking.any().item():
            return None
        read, seen = look()
        return Left(looking & (seen.told.leave >= self.limit), read, seen)

    def begin(self, state: mx.array) -> Any:
        if self.before is None:
            self.before = mx.zeros((*state.shape[:2], self.bundle.window - 1, state.shape[-1]))
        carried = self.bundle.asking.begun(self.before)
        self.before = mx.concatenate([state[..., None, :], self.before[..., :-1, :]], axis=-2)
        return carried

    def narrow(self, rows: Sequence[int]) -> None:
        """Only these go on to the next tap."""
        assert self.carried is not None
        at, (tap, *parts) = mx.array(list(rows)), self.carried
        self.carried = type(self.carried)(tap, *(part[at] for part in parts))

    def keep(self, rows: Sequence[int]) -> None:
        """Only these go on at all."""
        if self.before is not None:
            self.before = self.before[mx.array(list(rows))]

    def join(self, count: int) -> None:
        """So many new replies go on beside them: nothing is known of what came before."""
        if self.before is not None:
            self.before = mx.pad(self.before, [(0, count)] + [(0, 0)] * (self.before.ndim - 1))


class Drafter:
    """Drafts the next token of each reply at the first tap, by the mended state; full depth has the last word."""

    def __init__(self, bundle: Bundle):
        self.bundle, self.tap = bundle, bundle.taps[0]
        self.known: mx.array | None = None  # B P W: states of the last positions that stay, the newest last

    def __call__(self, stream: Stream, states: mx.array, there: np.ndarray) -> Drafted:
        bundle, size = self.bundle, stream.hidden.shape[1]
        ends = [[there.shape[1] - size + n for n in range(size)] for _ in there]
        before = self.last(states, there, ends)[:, :, ::-1]  # the nearest first
        begun, states = bundle.asking.begun(before), stream.hidden[None]
        read, seen = bundle.asking.ask(begun, states, stream.place, stream.shared).look()
        return Drafted(read, seen.told.leave, seen)

    def last(self, states: mx.array, there: np.ndarray, ends: Sequence[Sequence[int]]) -> mx.array:
        """B n P W: of each row, before some ends, the last that are there; of `states` not all are."""
        back = self.bundle.window - 1
        if self.known is None:
            self.known = mx.zeros((len(states), back, math.prod(states.shape[2:])))
        whole = np.pad(there, ((0, 0), (back, 0)), constant_values=True)
        at = [[np.flatnonzero(row[: back + end])[-back:] for end in of] for row, of in zip(whole, ends, strict=True)]
        rows = mx.arange(len(there))[:, None, None]
        return mx.concatenate([self.known, flat(states)], axis=1)[rows, mx.array(np.array(at))]

    def accept(self, states: mx.array, stay: np.ndarray) -> None:
        if self.known is not None and stay.all():  # as after every step without drafts
            self.known = mx.concatenate([self.known, flat(states)], axis=1)[:, 1 - self.bundle.window :]
        else:
            self.known = self.last(states, stay, [[stay.shape[1]]] * len(stay))[:, 0]

    def keep(self, rows: Sequence[int]) -> None:
        if self.known is not None:  # or it was never asked
            self.known = self.known[mx.array(list(rows))]

    def join(self, count: int) -> None:
        if self.known is not None:
            self.known = mx.pad(self.known, [(0, count), (0, 0), (0, 0)])


def flat(state: mx.array) -> mx.array:
    """B n W: Gemma 3n's four streams side by side."""
    return state.reshape(*state.shape[:2], -1)


def load(run: Path, decoder: Decoder) -> Bundle:
    """What the stages of a run made for this decoder, which has the run's domain adapter."""
    said, given = read_json(run / "calibrate" / "thresholds.json"), run / "trajectory"
    settings = saved.settings(given / saved.CONFIG, trajectory.Config)
    plain, late = (saved.load(folder, trajectory.Config, trajectory.Head) for folder in (given, run / "calibrate"))
    modules = [
        saved.load(run / "depth" / f"module-{tap}", depth.Config, lambda of: depth.Head(of, decoder))
        for tap in said["taps"]
    ]
    sizes = sorted((run / "transfer").glob(f"*/{saved.CONFIG}"))
    learned = {path.parent.name: saved.load(path.parent, transfer.Config, transfer.Head) for path in sizes}
    return Bundle(
        decoder=decoder,
        taps=tuple(said["taps"]),
        exits=tuple(said["exits"]),
        gate=tuple(-math.inf if least is None else least for least in said["gate"]),
        budget=said["budget"],
        limits={name: {risk: of["threshold"] for risk, of in said[name].items()} for name in DECISIONS},
        plain=plain,
        late=late,
        window=settings.window,
        glance=saved.load(given / "glimpse", glimpse.Config, glimpse.Head),
        modules=tuple(modules),
        names=saved.load(run / "semantic", semantic.Config, semantic.Head),
        named=tap_of(run / "semantic"),
        codecs={"raw": Raw(settings.width), "int8": Integers(settings.width, 8, settings.width)} | learned,
        sent=tap_of(run / "transfer"),
    )


def tap_of(stage: Path) -> int:
    """The block after which the stage read states."""
    return read_json(stage / "manifest.json")["metrics"]["tap"]
