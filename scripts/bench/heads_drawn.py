"""The batches that the trajectory stage draws: positions from anywhere, each with the few before it.

To make their states again their documents are run, those of like length together and no further than is asked.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from agp.models.load import Loaded
from curricula.features import Features
from curricula.stages import trajectory as stage
from heads import trajectory
from scripts.bench.heads_fed import Case, Teacher, text, trajectory_parts

TOGETHER = 64  # documents


class Again:
    """States at all taps of any positions, and at the first tap those of positions before."""

    def __init__(self, loaded: Loaded, features: Features, window: int):
        self.teacher, self.features, self.window = Teacher(loaded, features, features.taps[-1]), features, window
        counts = features.whole("length") - features.whole("first")
        self.order = np.lexsort((features.whole("length"), counts))

    def __call__(self, at: np.ndarray) -> tuple[mx.array, mx.array]:
        """N T W and N P W, in the order of `at`."""
        asked = self.features.document[at]
        documents = self.order[np.isin(self.order, asked)]
        found, places = [], []
        for which in (documents[k : k + TOGETHER] for k in range(0, len(documents), TOGETHER)):
            mine = np.flatnonzero(np.isin(asked, which))
            found.append(self.of(which, at[mine]))
            mx.eval(found[-1])
            places.append(mine)
        back = mx.array(np.argsort(np.concatenate(places)))
        now, before = (mx.concatenate(list(of))[back] for of in zip(*found, strict=True))
        return now, before

    def of(self, which: np.ndarray, at: np.ndarray) -> tuple[mx.array, mx.array]:
        features, given = self.features, text(self.features, which)
        document = features.document[at]
        row = np.argsort(which)[np.searchsorted(np.sort(which), document)]
        passed = at - features.begins[document]
        column = given.count - given.chosen.sum(1)[row] + passed
        states = [state.flatten(2) for state in self.teacher(given)[0]]
        now = mx.stack([state[mx.array(row), mx.array(column)] for state in states], axis=1)
        back = np.arange(1, self.window)
        earlier = states[0][mx.array(row)[:, None], mx.array(np.maximum(column[:, None] - back, 0))]
        return now, earlier * mx.array((passed[:, None] >= back).astype(np.float32))[..., None]


def drawn_case(root: Path, loaded: Loaded, features: Features) -> Case:
    make, met, truth = trajectory_parts(root, loaded, features)
    again, shape = Again(loaded, features, met.window), features.shards[0]["hidden"].shape[2:]

    def made(at: np.ndarray) -> tuple[Any, ...]:
        now, before = again(at)
        read = loaded.model.norm(loaded.model.together(now.reshape(*now.shape[:2], *shape)))
        return trajectory.Seen(now, before, read, mx.array(met.facts[at])), stage.some(truth, at)

    kept = lambda at: (met.seen(at), stage.some(truth, at))
    return Case(make, trajectory.loss, {"kept": kept, "made": made})


def positions(features: Features, count: int, batches: int, seed: int) -> list[np.ndarray]:
    """As the stage draws them."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.integers(features.count, size=count)) for _ in range(batches)]
