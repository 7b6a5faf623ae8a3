"""Descriptions of a whole run's heads against their twins: what an export is made of, judged by another library."""

import mlx.core as mx
import numpy as np
import pytest

from curricula.features import Features
from curricula.teacher import teacher
from export import program, twins
from export.ops import Plain
from export.ruler import measure
from heads import bundle
from scripts.export.feeds import feeds
from scripts.export.said import said
from tests.curricula.run import smoke
from tests.export.columns import rows
from tests.parity.compared import judge

ROOM, DOCUMENTS = 160, (0, 7)


@pytest.fixture(scope="module")
def given():
    return bundle.load(smoke(), teacher(smoke() / "domain").model), Features(smoke() / "harvest", "test")


def test_a_description_says_what_twins_say_of_real_positions(given):
    heads, features = given
    entry, other = program.entries(heads, ROOM)["many"], twins.twinned(heads)
    for d in DOCUMENTS:
        wanted, at = said(other, features, d), 0
        for feed in feeds(heads, features, np.array([d]), ROOM):
            count = len(feed.positions)
            found = {name: rows(x)[:count] for name, x in entry.describe(Plain(), feed.inputs).items()}
            judge([measure(name, found[name], wanted[name][at : at + count]) for name in found])
            at += count


def test_what_was_sent_is_restored_as_by_twins(given):
    heads, features = given
    entry, at = program.entries(heads, ROOM)["receive_many"], np.arange(program.MANY)
    states = features.states(at, heads.taps.index(heads.sent)).reshape(len(at), -1)
    told = np.random.default_rng(0).normal(size=(len(at), entry.inputs["told"][0]))
    told = mx.array(told.astype(np.float32))
    found = entry.describe(Plain(), program.receiving(heads, mx.array(states), told))
    for name, head in program.senders(heads).items():
        wanted = twins.Spoken(twins.twin(head))(mx.array(states), told)
        judge([measure(f"state_{name}", rows(found[f"state_{name}"]), wanted)])
