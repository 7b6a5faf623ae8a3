"""As arithmetic on columns, in double precision, a head says what it says in MLX."""

from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from export import coreml, evaluate
from export import trajectory as described
from export.ops import Entry, Plain
from heads import glimpse
from heads.trajectory import Config, Head, Seen
from tests.export.columns import columns, rows
from tests.toys import toy

TAPS, SHAPE = 3, {"taps": 3, "width": 24, "dim": 32, "window": 4, "hidden": 16, "dropout": 0.0}


class Made(NamedTuple):
    head: Head
    glance: glimpse.Head


@pytest.fixture(params=[("gemma4", "shares some"), ("gemma4", "no soft cap")], ids=lambda case: case[1])
def made(request):
    """Heads in which no weight is what it begins as."""
    _, glance = glimpse.glimpse(toy(*request.param), np.arange(0, 60, 3), 0.4)
    head = Head(Config(facts=len(glimpse.FACTS), **SHAPE))
    for name in ("bias", "first", "last", "zero"):
        head[name] = mx.random.normal(head[name].shape)
    head.size = 1 + mx.random.uniform(shape=head.size.shape)
    return Made(head, glance)


def test_a_glance_says_the_same_facts(made):
    """Of what it cannot choose from, of what it is all but sure of, and of nothing."""
    rng = np.random.default_rng(0)
    random, sure = rng.normal(size=(50, 32)), np.array(made.glance.rows[:14], np.float64)
    for states, gain in ((random, 2 + rng.random(32)), (sure, np.full(32, 7.0)), (0 * random[:2], np.ones(32))):
        for size in (1, 30):
            normed = states / np.sqrt(np.square(states).mean(-1, keepdims=True) + 1e-12)
            ours = rows(described.glance(Plain(), made.glance, columns(size * states), gain))
            theirs = np.array(made.glance(mx.array(normed * gain, mx.float32)).facts)
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=3e-4)


def test_of_a_state_that_says_nothing_a_whole_vocabulary_does_not_overflow(tmp_path):
    """All others are then 65,504 times as likely as the first choice, and more."""
    head = glimpse.Head(glimpse.Config(count=40, others=260_000, dim=32, cap=30.0, clear=1.0))
    head.rows, head.rest = mx.random.normal((40, 32)), mx.zeros(32)
    gain = np.ones(32)
    entry = Entry({"x": (32, 8)}, lambda o, given: {"facts": described.glance(o, head, given["x"], gain)})
    coreml.save(tmp_path / "glance.mlpackage", {"main": entry}, "main")
    feed = {"x": np.zeros((1, 32, 1, 8), np.float16)}
    found = evaluate.run(evaluate.load(tmp_path / "glance.mlpackage"), "main", feed, exact=False)["facts"]
    wanted = entry.describe(Plain(), {"x": np.zeros((1, 32, 1, 8))})["facts"]
    np.testing.assert_allclose(found, wanted, atol=0.02, rtol=2e-3)


@pytest.mark.parametrize("count", [1, 64])
def test_all_taps_say_the_same_of_positions_beside_each_other(made, count):
    head, window = made.head, SHAPE["window"]
    states = mx.random.normal((window - 1 + count, TAPS, SHAPE["width"]))
    states[0] = 0  # before the beginning there is nothing
    read = 2 * mx.random.normal((count, TAPS, SHAPE["dim"]))
    facts = made.glance(read).facts
    now, earlier = states[window - 1 :], states[: window - 1, 0]
    before = mx.stack([states[window - 1 - back : len(states) - back, 0] for back in range(1, window)], axis=1)
    wanted = head(Seen(now, before, read, facts))
    o = Plain()
    known = described.seen(o, head, [columns(now[:, t]) for t in range(TAPS)], columns(earlier))
    for tap, of in enumerate(known):
        said = described.said(o, head, tap, of, columns(read[:, tap]), columns(facts[:, tap]))
        for name, ours in (said._asdict() | {"hope": described.hope(o, head, tap, of)}).items():
            theirs = np.array(getattr(wanted, name))[:, tap].reshape(count, -1)
            np.testing.assert_allclose(rows(ours), theirs, rtol=1e-4, atol=1e-4, err_msg=f"{name} at tap {tap}")
