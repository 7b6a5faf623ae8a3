"""As arithmetic on columns, a depth module mends as it does in MLX: the same mix, the same attention."""

import mlx.core as mx
import numpy as np
import pytest

from agp.sites import Site, record
from export import depth as described
from export.ops import Plain
from heads.depth import linear
from tests.export.columns import columns, rows
from tests.heads.test_depth import CASES, TAPS, made, met
from tests.toys import text, toy

ROOM = 40


@pytest.fixture(params=CASES, ids=lambda case: " ".join(case))
def model(request):
    return toy(*request.param)


def streams(state):
    """B L D, or Gemma 3n's B L 4 D: its numbers side by side, of the first text."""
    return np.array(state[0]).reshape(state.shape[1], -1)


@pytest.mark.parametrize("count", [1, 9])
def test_a_module_mends_the_same_state(model, count):
    """Of the last positions of a text; keys of all before, padded with what nobody may see."""
    _, head = made(model)
    head.asked = 0.1 * head.asked
    for name in ("before_attention", "before_mlp", "scale"):
        head[name] = 1 + mx.random.uniform(shape=head[name].shape)
    for attention in head.attention.values():
        attention.q_norm.weight = 0.5 + mx.random.uniform(shape=attention.q_norm.weight.shape)
    states, place, shared = met(model, text())
    wanted = head(states[:, :, -count:], place, shared)
    past = {
        kind: described.Past(
            **described.handed(attention, place, shared[kind].keys[0], shared[kind].values[0], count, ROOM)
        )
        for kind, attention in head.attention.items()
    }
    dim = model.config.hidden_size
    given = [columns(streams(state[:, -count:])) for state in states]
    last = described.together(Plain(), model, given[-1])
    found, weights = described.module(Plain(), head, [of[:, :dim] for of in given[:-1]], last, past)
    np.testing.assert_allclose(rows(found), np.array(wanted.state[0]), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(rows(weights), np.array(wanted.weights[0]), rtol=1e-3, atol=1e-3)
    assert 0.01 < np.array(wanted.weights[0]).mean(0).min()


def test_more_keys_than_there_is_room_for_are_refused(model):
    _, head = made(model)
    _, place, shared = met(model, text())
    kind, attention = next(iter(head.attention.items()))
    with pytest.raises(ValueError, match="17 keys are there, and the program was made for 16"):
        described.handed(attention, place, shared[kind].keys[0], shared[kind].values[0], 1, 16)


def test_streams_are_brought_together_as_the_final_norm_takes_them():
    model = toy("gemma3n", "shares some")
    taken = {}
    model.blocks(model.embed(text()), visit=record(taken, [Site(TAPS[0], "block")]))
    state = next(iter(taken.values()))
    ours = described.together(Plain(), model, columns(streams(state)))
    np.testing.assert_allclose(
        rows(Plain().norm(ours, 1e-6)) * np.array(model.norm.weight), np.array(model.normed(state)[0]), atol=2e-3
    )
    assert mx.array_equal(linear(model.altup_unembed_projections[0]).weight, model.altup_unembed_projections[0].weight)
