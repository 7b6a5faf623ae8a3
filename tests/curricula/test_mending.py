"""What is learned of documents side by side is what each of them teaches alone, whoever shares the work."""

import mlx.core as mx
import numpy as np
import pytest

from agp.layers import Place
from agp.sites import Site, record
from curricula.features import Features
from curricula.mending import STEP, Batches, known, lesson, loss, mended, parts, stacked
from curricula.stages.depth import midway
from curricula.teacher import teacher
from curricula.tuned import Lens
from heads import depth
from heads.glimpse import most_used
from tests.curricula.run import smoke


@pytest.fixture(scope="module")
def decoder():
    return teacher(smoke() / "domain").model


@pytest.fixture(scope="module")
def heads():
    return Features(smoke() / "harvest", "heads")


@pytest.fixture(scope="module")
def tune():
    return Features(smoke() / "harvest", "tune")


def module(decoder, taps=3):
    """One that says something."""
    mx.random.seed(1)
    head = depth.Head(depth.Config(taps=taps, blocks=midway(decoder), width=8), decoder)
    head.asked = 0.1 * mx.random.normal(head.asked.shape)
    head.down.weight = 0.1 * mx.random.normal(head.down.weight.shape)
    return head


def batches(decoder, features, *, size=6, count=200, **more):
    used = most_used(features.whole("taught"), features.whole("taught_logs"), count)
    return Batches(decoder, features, used, taps=3, size=size, top=4, seed=5, **more)


def test_states_are_mended_as_those_of_each_document_run_alone(decoder, tune):
    """From its tokens on, with nothing read from disk; in the order of the features, whatever stood side by side."""
    head = module(decoder)
    found = mended([head], decoder, tune, parts(tune, 5, np.random.default_rng(0)))
    read, weights = found.read[:, 0].astype(np.float32), found.weights[0]
    for d in range(len(tune.begins)):
        ids, first = tune.of(d, "ids").tolist(), tune.of(d, "first")
        taken = {}
        sites = [Site(tap, "block") for tap in tune.taps[:3]]
        stream = decoder.blocks(decoder.embed(mx.array([ids[:-1]])), visit=record(taken, sites))
        states = mx.stack([taken[site][:, first - 1 :] for site in sites])
        told = head(states, Place(len(ids) - 1, None), stream.shared)
        at = tune.begins[d] + np.arange(len(ids) - first)
        normed = np.array(decoder.norm(told.state))[0]
        np.testing.assert_allclose(weights[at], np.array(told.weights)[0], atol=5e-3)
        assert np.abs(read[at] - normed).max() < 0.02 * np.abs(normed).max()
        batch = tune.together([d])  # what was read lies there to 11 bits; what was said of it was not rounded
        kept = decoder.norm(head(batch.states[:3], Place(batch.end, batch.pad), batch.shared).state)[0]
        assert np.abs(read[at] - np.array(kept)).max() < 1e-3 * np.abs(read[at]).max()
        logits = np.array(decoder.head(kept), np.float64)
        final = np.array(decoder.head(decoder.norm(mx.array(tune.final(at)))), np.float64)
        logs, truth = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (logits, final))
        assert np.array_equal(found.agrees[at, 0], logs.argmax(-1) == truth.argmax(-1))
        np.testing.assert_allclose(
            found.divergence[at, 0], (np.exp(truth) * (truth - logs)).sum(-1), rtol=1e-3, atol=1e-3
        )
        np.testing.assert_allclose(found.margin[at, 0], np.diff(np.sort(logs)[:, -2:])[:, 0], rtol=1e-3, atol=1e-4)


def test_modules_stand_in_the_order_of_their_taps(decoder, tune):
    modules, states = stacked(smoke() / "depth", decoder, {"tune": tune})
    assert [head.taps for head in modules] == [1, 2, 3, 4]
    for t, head in enumerate(modules):
        alone = mended([head], decoder, tune, parts(tune, 3))
        assert np.array_equal(states["tune"].agrees[:, t], alone.agrees[:, 0])
        np.testing.assert_allclose(states["tune"].read[:, t], alone.read[:, 0], rtol=1e-2, atol=1e-2)


def test_a_lesson_is_what_the_teacher_gives_to_the_tokens_it_is_about(heads):
    at = np.arange(0, heads.count, 7)
    used = most_used(heads.whole("taught"), heads.whole("taught_logs"), 150)
    ids = known(heads, at, used, 4)
    shares = lesson(heads, at, ids)
    taught, logs = heads.take("taught", at), heads.take("taught_logs", at).astype(float)
    assert len(ids) == 150 and (np.diff(ids) > 0).all()
    for n in range(len(at)):
        slow = dict.fromkeys(ids.tolist(), 0.0)
        slow |= {token: np.exp(log) for token, log in zip(taught[n].tolist(), logs[n], strict=True) if token in slow}
        np.testing.assert_allclose(shares[n], list(slow.values()), rtol=1e-5)
        assert set(taught[n, :4]) <= set(ids.tolist())
    assert 0.5 < shares.sum(1).mean() < 1.001


@pytest.mark.parametrize("turn", range(3))
def test_every_document_comes_once_a_turn(turn, decoder, heads):
    given = batches(decoder, heads)
    steps = range(turn * given.turn + 1, (turn + 1) * given.turn + 1)
    documents = np.concatenate([given.order((step - 1) // given.turn)[(step - 1) % given.turn] for step in steps])
    assert sorted(documents) == list(range(len(heads.begins)))
    assert sum(int(given(step, 0)[0].chosen.sum()) for step in steps) == heads.count


def test_turns_differ_and_come_out_the_same_again(decoder, heads):
    first, again = batches(decoder, heads), batches(decoder, heads)
    orders = [[part.tolist() for part in of.order(turn)] for of in (first, again) for turn in (0, 1)]
    assert orders[0] == orders[2] and orders[1] == orders[3] and orders[0] != orders[1]


def test_documents_of_a_batch_are_alike_in_length(heads):
    counts = heads.whole("length") - heads.whole("first")
    waste = [-(-counts[part] // STEP).max() * STEP * len(part) - counts[part].sum() for part in parts(heads, 6)]
    mixed = np.array_split(np.random.default_rng(0).permutation(len(counts)), len(waste))
    assert sum(waste) <= sum(-(-counts[part] // STEP).max() * STEP * len(part) - counts[part].sum() for part in mixed)


def test_padding_teaches_nothing(decoder, heads):
    """One document, and beside it one that is longer."""
    counts = heads.whole("length") - heads.whole("first")
    short, long = int(counts.argmin()), int(counts.argmax())
    head, end, given = module(decoder), heads.about["end"], batches(decoder, heads, count=4000)
    one, other, both = (given.given(np.array(of)) for of in ([short], [long], [short, long]))
    slow = [loss(head, of, decoder=decoder, end=end) for of in (one, other)]
    fast = loss(head, both, decoder=decoder, end=end)
    assert fast[1].item() == counts[short] + counts[long]
    assert fast[0].item() == pytest.approx(sum(of[0].item() for of in slow), rel=2e-2)


def test_the_tuned_lens_reads_its_own_tap_and_costs_as_much(decoder, tune):
    head = module(decoder)
    lens, batch = Lens(decoder, head.taps, head.macs), tune.together([0, 3])
    assert head.macs - 3 * decoder.config.hidden_size < lens.macs <= head.macs
    said = lens(batch.states[:3], None, None)
    plain = decoder.norm(batch.states[2])
    np.testing.assert_allclose(np.array(decoder.norm(said.state)), np.array(plain), rtol=1e-3, atol=1e-3)
    assert np.array(said.weights).tolist() == np.broadcast_to([0, 0, 1.0], said.weights.shape).tolist()
    lens.down.weight = mx.random.normal(lens.down.weight.shape)
    moved = batch.states.at[:2].add(1.0)
    assert mx.array_equal(lens(batch.states[:3], None, None).state, lens(moved[:3], None, None).state)
