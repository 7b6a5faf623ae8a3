"""All heads together say what they say in MLX, of real states of a run, one position at a time or many at once."""

import mlx.core as mx
import numpy as np
import pytest

from curricula.features import Features
from curricula.teacher import teacher
from export import program
from export.ops import Plain
from export.trajectory import Said
from heads import bundle
from scripts.export.feeds import feeds
from scripts.export.said import said
from tests.curricula.run import smoke
from tests.export.columns import rows

ROOM, LATER = 160, 1  # a tap with others above it
DOCUMENTS = (0, 5, 11)


@pytest.fixture(scope="module")
def given():
    found = bundle.load(smoke(), teacher(smoke() / "domain").model)
    return found, Features(smoke() / "harvest", "test")


def spoken(given, size, change=lambda inputs: inputs):
    """What the description says of some documents, and in which order of positions."""
    of, features = given
    entry, found = program.entries(of, ROOM)["one" if size == 1 else "many"], []
    for feed in feeds(of, features, np.array(DOCUMENTS), ROOM, size):
        assert {name: x.shape[1::2] for name, x in feed.inputs.items()} == entry.inputs
        told = entry.describe(Plain(), change(feed.inputs))
        found.append({name: rows(x)[: len(feed.positions)] for name, x in told.items()})
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


@pytest.mark.parametrize("size", [1, program.MANY])
def test_all_that_is_said_is_what_is_said_in_mlx(given, size):
    of, features = given
    parts = [said(of, features, d) for d in DOCUMENTS]
    wanted = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found = spoken(given, size)
    assert found.keys() == wanted.keys()
    for name, truth in wanted.items():
        np.testing.assert_allclose(found[name], truth, rtol=1e-3, atol=2e-4 * np.abs(truth).max(), err_msg=name)


def test_nothing_said_of_a_tap_hangs_on_one_above_it(given):
    """So that the same program serves at every tap, what is above it being zeros."""
    taps, width = given[0].plain.config.taps, given[0].plain.config.width

    def begun(inputs):
        states = inputs["states"].copy()
        states[:, (LATER + 1) * width :] = 0
        return inputs | {"states": states}

    whole, part = spoken(given, program.MANY), spoken(given, program.MANY, begun)
    sizes = {name: whole[name].shape[1] // taps for name in whole}
    by_tap = [*(f"{name}{end}" for name in Said._fields for end in ("", "_mended")), "hope", "mended"]
    for name in by_tap:
        end = (LATER + 1) * sizes[name]
        np.testing.assert_allclose(part[name][:, :end], whole[name][:, :end], rtol=1e-9, atol=1e-9, err_msg=name)
        assert np.abs(whole[name][:, end:] - part[name][:, end:]).max() > 0.01, name


def test_what_was_sent_is_restored_as_in_mlx(given):
    of, features = given
    entry, at = program.entries(of, ROOM)["receive_many"], np.arange(program.MANY)
    states = mx.array(features.states(at, of.taps.index(of.sent)).reshape(len(at), -1))
    told = mx.random.normal((len(at), next(iter(program.senders(of).values())).config.told))
    feeds = program.receiving(of, states, told)
    wanted = {
        f"state_{name}": np.array(head.restored(head.codes(states, told), told))
        for name, head in program.senders(of).items()
    }
    assert {name: x.shape[1::2] for name, x in feeds.items()} == entry.inputs
    for name, found in entry.describe(Plain(), feeds).items():
        np.testing.assert_allclose(rows(found), wanted[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_heads_that_read_states_differently_are_refused(given):
    late = given[0].late
    kept = late.bias
    late.bias = late.bias + 1
    try:
        with pytest.raises(ValueError, match="calibrate changed bias of the trajectory head"):
            program.entries(given[0], ROOM)
    finally:
        late.bias = kept
