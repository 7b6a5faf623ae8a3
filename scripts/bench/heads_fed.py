"""What `agp bench heads` feeds each head: batches from states that were kept, and the same from states made again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.batch import padded
from agp.cache import KV
from agp.layers import tail
from agp.models.load import Loaded
from agp.packing import MULTIPLE
from agp.sites import Site, record
from curricula import labels, mending
from curricula.features import Features
from curricula.mending import Given
from curricula.onward import Onward
from curricula.positions import Met, judged
from curricula.recipes import Recipe
from curricula.stages import semantic as semantic_stage
from curricula.stages import trajectory as trajectory_stage
from curricula.stages.trajectory import GLIMPSE, LIMITS
from heads import depth, glimpse, saved, semantic, trajectory, transfer, vocabulary
from heads.bundle import tap_of

SEED = 0


class Documents(NamedTuple):
    """Some side by side, as text alone."""

    which: np.ndarray
    ids: mx.array
    pad: mx.array
    count: int  # positions of the longest answer, rounded up
    chosen: np.ndarray  # B n
    at: np.ndarray  # N: positions


class Case(NamedTuple):
    """A head, and what it is given by each side."""

    make: Callable[[], Any]  # a head as it was trained, to be trained further
    loss: Callable
    given: dict[str, Callable[[Any], tuple[Any, ...]]]  # of some documents, or of some positions


def text(features: Features, which: np.ndarray) -> Documents:
    rows = [features.of(d, "ids")[:-1].tolist() for d in which]
    counts = [features.of(d, "length") - features.of(d, "first") for d in which]
    longest = -(-max(map(len, rows)) // MULTIPLE) * MULTIPLE
    ids, pad = padded(rows)
    more = longest - ids.shape[1]
    count, end = -(-max(counts) // mending.STEP) * mending.STEP, features.about["end"]
    chosen = np.arange(count) >= count - np.array(counts)[:, None]
    at = np.concatenate([features.begins[d] + np.arange(c) for d, c in zip(which, counts, strict=True)])
    return Documents(which, mx.pad(ids, [(0, 0), (more, 0)]), pad + more + end - longest, count, chosen, at)


class Teacher:
    """Makes states again, up to one of the taps."""

    def __init__(self, loaded: Loaded, features: Features, last: int):
        self.model, self.end = loaded.model, features.about["end"]
        self.taps = [tap for tap in features.taps if tap <= last]
        self.compiled = {}  # by number of positions

    def __call__(self, given: Documents) -> tuple[list[mx.array], dict[str, KV]]:
        """At each tap B n D, and the keys and values of all tokens."""
        if given.count not in self.compiled:
            self.compiled[given.count] = mx.compile(lambda ids, pad: self.forward(ids, pad, given.count))
        states, shared = self.compiled[given.count](given.ids, given.pad)
        return states, {kind: KV(*kv) for kind, kv in shared.items()}

    def forward(self, ids: mx.array, pad: mx.array, count: int) -> tuple[list[mx.array], dict[str, list[mx.array]]]:
        taken: dict[Site, mx.array] = {}
        sites = [Site(tap, "block") for tap in self.taps]
        begun = self.model.embed(ids, end=self.end, pad=pad)
        stream = self.model.blocks(begun, stop=self.taps[-1] + 1, visit=record(taken, sites), last=count)
        return [tail(taken[site], count) for site in sites], {kind: list(kv) for kind, kv in stream.shared.items()}

    def flat(self, given: Documents) -> mx.array:
        """N W: at the last tap."""
        state = self(given)[0][-1].flatten(0, 1)
        return state[mx.array(np.flatnonzero(given.chosen))].reshape(len(given.at), -1)


def trajectory_parts(root: Path, loaded: Loaded, features: Features) -> tuple[Callable[[], Any], Met, trajectory.Truth]:
    """How a head is made, what it is shown, and what is true."""
    settings = saved.settings(root / "trajectory" / saved.CONFIG, trajectory.Config)
    make = lambda: thawed(saved.load(root / "trajectory", trajectory.Config, trajectory.Head), ["size", "zero"])
    glance = saved.load(root / "trajectory" / GLIMPSE, glimpse.Config, glimpse.Head)
    met = Met(loaded.model, features, glance, settings.window)
    limit = labels.Limits(**json.loads((root / "trajectory" / LIMITS).read_text()))
    enough = labels.sufficient(judged(features), limit)
    return make, met, trajectory_stage.true(features, enough, loaded.model.config.num_layers)


def trajectory_case(root: Path, loaded: Loaded, features: Features) -> Case:
    make, met, truth = trajectory_parts(root, loaded, features)
    again = Teacher(loaded, features, features.taps[-1])

    def made(given: Documents) -> tuple[Any, ...]:
        states = [state * mx.array(given.chosen)[(...,) + (None,) * (state.ndim - 2)] for state in again(given)[0]]
        where = mx.array(np.flatnonzero(given.chosen))
        first, count = states[0].flatten(2), given.count
        back = [mx.pad(first, [(0, 0), (k, 0), (0, 0)])[:, :count] for k in range(1, met.window)]
        before = mx.stack(back, axis=2).flatten(0, 1)[where]
        now = mx.stack([state.flatten(0, 1)[where] for state in states], axis=1)
        read = loaded.model.norm(loaded.model.together(now))
        seen = trajectory.Seen(now.flatten(2), before, read, mx.array(met.facts[given.at]))
        return seen, trajectory_stage.some(truth, given.at)

    kept = lambda given: (met.seen(given.at), trajectory_stage.some(truth, given.at))
    return Case(make, trajectory.loss, {"kept": kept, "made": made})


def semantic_case(root: Path, recipe: Recipe, loaded: Loaded, features: Features) -> Case:
    make = lambda: thawed(saved.load(root / "semantic", semantic.Config, semantic.Head), semantic.SETTLED)
    roles, _ = semantic_stage.read(recipe.semantic, root / "harvest", loaded, None)
    role = roles["heads"]
    again = Teacher(loaded, features, features.taps[role.number])

    def labelled(given: Documents) -> tuple[mx.array, mx.array]:
        true, known = (of[given.at].astype(np.float32) for of in role.labels)
        return mx.array(true), mx.array(known)

    kept = lambda given: (role.states(given.at), *labelled(given))
    made = lambda given: (again.flat(given), *labelled(given))
    return Case(make, semantic.loss, {"kept": kept, "made": made})


def depth_case(root: Path, recipe: Recipe, loaded: Loaded, features: Features) -> Case:
    """Of the module at the first tap, in which most steps are spent."""
    config, model, tap = recipe.depth, loaded.model, features.taps[0]
    folder = root / "depth" / f"module-{tap}"
    make = lambda: thawed(saved.load(folder, depth.Config, lambda of: depth.Head(of, model)), [])
    used = glimpse.most_used(features.whole("taught"), features.whole("taught_logs"), config.vocabulary)
    batches = mending.Batches(model, features, used, taps=1, size=config.documents, top=config.top, seed=SEED)
    again, end = Teacher(loaded, features, tap), features.about["end"]

    def made(given: Documents) -> tuple[Given]:
        states, shared = again(given)
        places = np.zeros(given.chosen.shape, int)
        places[given.chosen] = given.at
        ids = mending.known(features, given.at, used, config.top)
        rows = vocabulary.rows(model, mx.array(ids))
        taught = mx.array(mending.lesson(features, places.reshape(-1), ids).reshape(*places.shape, -1))
        return (Given(mx.stack(states), given.pad, shared, rows, taught, mx.array(given.chosen)),)

    loss = lambda head, given: mending.loss(head, given, decoder=model, end=end)
    return Case(make, loss, {"kept": lambda given: (batches.given(given.which),), "made": made})


def transfer_case(root: Path, loaded: Loaded, features: Features) -> Case:
    """Of the largest codec, by the error in the plain metric: which one it is takes no time."""
    folder = min(
        (path.parent for path in (root / "transfer").glob(f"*/{saved.CONFIG}")), key=lambda f: int(f.name[:-1])
    )
    make = lambda: thawed(saved.load(folder, transfer.Config, transfer.Head), ["span"])
    tap = tap_of(root / "transfer")
    onward, again, metric = (
        Onward(loaded.model, features, tap),
        Teacher(loaded, features, tap),
        mx.eye(make().config.width),
    )
    kept = lambda given: (onward.states(given.at), onward.told(given.at), metric)
    made = lambda given: (again.flat(given), onward.told(given.at), metric)
    return Case(make, transfer.loss, {"kept": kept, "made": made})


def thawed(head: Any, settled: list[str]) -> Any:
    head.unfreeze()
    head.freeze(keys=settled, recurse=False)
    return head


def cases(root: Path, recipe: Recipe, loaded: Loaded, features: Features) -> dict[str, Case]:
    return {
        "trajectory": trajectory_case(root, loaded, features),
        "semantic": semantic_case(root, recipe, loaded, features),
        "depth": depth_case(root, recipe, loaded, features),
        "transfer": transfer_case(root, loaded, features),
    }
