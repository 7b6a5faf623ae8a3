"""A position is met with what was there before it in its own document, and nothing else."""

from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from curricula.features import Features
from curricula.positions import CHUNK, Met, chunks, earlier, shares
from curricula.stages.trajectory import Config, made
from curricula.teacher import teacher
from heads import glimpse, saved, trajectory
from tests.curricula.run import smoke


@pytest.fixture(scope="module")
def features():
    return Features(smoke() / "harvest", "heads")


@pytest.fixture(scope="module")
def met(features):
    glance = saved.load(smoke() / "trajectory/glimpse", glimpse.Config, glimpse.Head)
    return Met(teacher(smoke() / "domain").model, features, glance, 4)


def test_positions_before_are_of_the_same_document_the_nearest_first(features):
    at = np.arange(features.count)
    found = earlier(features, at, 4)
    first = features.states(at)[:, 0]
    for n in at:
        for back in range(1, 4):
            there = n - back >= 0 and features.document[n - back] == features.document[n]
            assert np.array_equal(found[n, back - 1], first[n - back] if there else np.zeros_like(first[0]))
    assert (found[:, 0] == 0).all(1).sum() == len(features.begins)


def test_a_state_is_read_as_the_lens_reads_it(met, features):
    at = np.array([0, 7, 90])
    seen, model = met.seen(at), met.decoder
    logits = np.array(model.head(seen.read), np.float64)
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.log(1 - share.max(-1)), features.take("doubt", at), rtol=2e-2)
    assert seen.now.shape == (3, 4, 192) and seen.before.shape == (3, 3, 192)
    assert np.array_equal(np.array(seen.facts), met.facts[at])


def test_a_mended_state_is_read_instead_and_its_facts_are_its_own(met, features):
    other = np.random.default_rng(0).normal(size=(features.count, 4, 192)).astype(np.float16)
    glance = saved.load(smoke() / "trajectory/glimpse", glimpse.Config, glimpse.Head)
    mended = Met(met.decoder, features, glance, 4, other)
    at = np.array([3, 5])
    plain, seen = met.seen(at), mended.seen(at)
    assert np.array_equal(np.array(seen.read), other[at].astype(np.float32))
    np.testing.assert_allclose(np.array(glance(mx.array(other[at].astype(np.float32))).facts), seen.facts, rtol=1e-4)
    assert mx.array_equal(plain.now, seen.now) and mx.array_equal(plain.before, seen.before)


def test_answers_come_in_the_order_of_positions(met, features):
    mx.random.seed(0)
    head = trajectory.Head(made(Config(), features))
    head.last, head.first = mx.random.normal(head.last.shape), mx.random.normal(head.first.shape)
    head.eval()
    whole, at = met.answers(head), np.array([200, 3, 4])
    for all_of, some in zip(whole, head(met.seen(at)), strict=True):
        np.testing.assert_allclose(all_of[at], np.array(some), rtol=1e-3, atol=1e-3)
    read = met.read_by(head)
    said = head.say(mx.array(read))
    np.testing.assert_allclose(whole.leave, np.array(said.leave), rtol=1e-3, atol=1e-3)


def test_facts_are_brought_to_one_scale(met, features):
    head = trajectory.Head(made(Config(), features))
    met.scaled(head)
    facts = (met.facts - np.array(head.zero)[:, 1:]) / np.array(head.size)[:, 1:]
    assert np.abs(facts.mean(0)).max() < 0.05 and np.abs(facts.std(0) - 1).max() < 0.05


@pytest.mark.parametrize("count", [1, CHUNK, CHUNK + 1, 3 * CHUNK - 1])
def test_chunks_are_all_positions_in_order(count):
    assert np.array_equal(np.concatenate(chunks(count)), np.arange(count)) and max(map(len, chunks(count))) <= CHUNK


def test_two_hosts_take_the_parts_that_one_takes_in_turn():
    rows = np.arange(11)
    group = lambda rank, size: SimpleNamespace(rank=lambda: rank, size=lambda: size)
    one, (first,), (second,) = (shares(of, rows) for of in (None, group(0, 2), group(1, 2)))
    assert [part.tolist() for part in one] == [first.tolist(), second.tolist()]
    thirds = [shares(group(rank, 3), rows) for rank in range(3)]
    assert sorted(np.concatenate([part for (part,) in thirds])) == rows.tolist()
