"""What the head says at a tap depends on nothing that is not known there, and each of its answers can be learned."""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from agp.train import FitConfig, fit
from heads import saved
from heads.trajectory import ROUTES, Config, Head, Seen, Told, Truth, loss, missed

N, CONFIG = 512, Config(taps=3, width=12, dim=6, facts=5, window=4, hidden=16, dropout=0.0)
TAPS = CONFIG.taps


def drawn(seed=0, config=CONFIG, n=N):
    shapes = [
        (n, config.taps, config.width),
        (n, config.window - 1, config.width),
        (n, config.taps, config.dim),
        (n, config.taps, config.facts),
    ]
    keys = mx.random.split(mx.random.key(seed), len(shapes))
    return Seen(*(mx.random.normal(shape, key=key) for shape, key in zip(shapes, keys, strict=True)))


def random_head(config=CONFIG, seed=1):
    """A head begins with nothing to say."""
    mx.random.seed(seed)
    head = Head(config)
    head.first, head.last = mx.random.normal(head.first.shape), mx.random.normal(head.last.shape)
    head.eval()
    return head


def put(x, at, value=7.0):
    x = np.array(x)
    x[at] = value
    return mx.array(x)


def same(one, two, part=slice(None)):
    return [np.array_equal(np.array(a)[part], np.array(b)[part]) for a, b in zip(one, two, strict=True)]


@pytest.mark.parametrize("tap", range(TAPS - 1))
def test_what_is_said_at_a_tap_does_not_depend_on_later_taps(tap):
    head, seen = random_head(), drawn()
    later = np.s_[:, tap + 1 :]
    other = Seen(put(seen.now, later), seen.before, put(seen.read, later), put(seen.facts, later))
    upto = np.s_[:, : tap + 1]
    assert all(same(head(seen), head(other), upto))
    assert not any(same(head(seen), head(other)))


def test_what_is_said_depends_on_taps_and_positions_before():
    head, seen = random_head(), drawn()
    for other in (
        seen._replace(now=put(seen.now, np.s_[:, 0, :5])),
        seen._replace(before=put(seen.before, np.s_[:, 2])),
    ):
        assert not any(same(head(seen), head(other), np.s_[:, 2]))


def test_one_position_is_answered_as_if_it_were_alone():
    head, seen = random_head(), drawn()
    alone = head(Seen(*(of[5:6] for of in seen)))
    for whole, one in zip(head(seen), alone, strict=True):
        np.testing.assert_allclose(np.array(whole)[5:6], np.array(one), rtol=1e-5, atol=1e-5)


def test_hope_is_from_what_is_known_before_a_look():
    """Whether to look is what it decides, so nothing that a look tells may change it."""
    head, seen = random_head(), drawn()
    other = seen._replace(read=seen.read + 1, facts=2 - seen.facts)
    found = dict(zip(Told._fields, same(head(seen), head(other)), strict=True))
    assert found == {"route": False, "vitality": False, "leave": False, "hope": True, "earliest": False}


def test_the_first_route_is_taken_with_the_log_odds_that_its_logit_says():
    head, seen = random_head(), drawn()
    said, route = np.array(head.features(seen)), np.array(head(seen).route, np.float64)
    odds = np.einsum("nte,te->nt", said, np.array(head.last)[:, :, 0])
    share = np.exp(route) / np.exp(route).sum(-1, keepdims=True)
    np.testing.assert_allclose(share[..., 0], 1 / (1 + np.exp(-odds)), atol=1e-5)
    others = np.einsum("nte,teo->nto", said, np.array(head.last)[:, :, 1:4])
    shares = np.exp(others) / np.exp(others).sum(-1, keepdims=True)
    np.testing.assert_allclose(share[..., 1:], (1 - share[..., :1]) * shares, atol=1e-5)


def planted(what, seen):
    """Truth of which one answer can be learned, and all others are drawn."""
    rng = np.random.default_rng(3)
    now, before, read, facts = (np.array(of) for of in seen)
    n = len(now)
    truth = {
        "route": rng.integers(len(ROUTES), size=(n, TAPS)),
        "vitality": rng.random((n, TAPS)),
        "agrees": rng.random((n, TAPS)) < 0.5,
        "sure": rng.random((n, TAPS)) < 0.5,
        "earliest": rng.integers(TAPS + 1, size=n),
    }
    if what == "route":
        truth["route"] = 2 * (read[..., 0] > 0) + (facts[..., 1] > 0)
    elif what == "vitality":
        truth["vitality"] = 1 / (1 + np.exp(-3 * now[:, :, 0]))
    elif what == "leave":
        truth["agrees"] = facts[..., 0] > 0
    elif what == "hope":
        truth["sure"] = np.cumsum(now[:, :, 1], axis=1) + before[:, 0, 0][:, None] > 0
    else:
        truth["earliest"] = 1 * (now[:, 0, 0] > 0) + 2 * (before[:, 1, 0] > 0)
    whole = ("route", "earliest")
    return Truth(**{name: mx.array(of).astype(mx.int32 if name in whole else mx.float32) for name, of in truth.items()})


def right(what, told, truth):
    """How much better than nothing, from 0 to 1."""
    if what in ("leave", "hope"):
        true = truth.agrees if what == "leave" else truth.sure
        return 2 * ((np.array(getattr(told, what)) > 0) == np.array(true)).mean() - 1
    if what == "vitality":
        guess, true = 1 / (1 + np.exp(-np.array(told.vitality))), np.array(truth.vitality)
        return 1 - np.square(guess - true).mean() / true.var()
    label = truth.route if what == "route" else mx.broadcast_to(truth.earliest[:, None], told.earliest.shape[:2])
    return (np.array(getattr(told, what)).argmax(-1) == np.array(label)).mean()


@pytest.mark.parametrize("what", Told._fields)
def test_each_answer_is_learned_where_there_is_something_to_learn(what, tmp_path):
    mx.random.seed(0)
    head, seen, other = Head(CONFIG), drawn(4, n=4096), drawn(5)
    truth = planted(what, seen)

    def batch(step, micro):
        at = mx.arange(step % 8, 4096, 8)
        return Seen(*(of[at] for of in seen)), Truth(*(of[at] for of in truth))

    held = planted(what, other)
    before = right(what, head(other), held)
    fit(head, loss, batch, FitConfig(steps=250, rate=1e-2, warmup=10), tmp_path)
    head.eval()
    after = right(what, head(other), held)
    assert after > 0.65 and before < 0.5
    assert max(right(name, head(other), held) for name in Told._fields if name != what) < 0.5


def test_where_nothing_was_disturbed_vitality_teaches_nothing():
    head, seen = random_head(), drawn()
    truth = planted("route", seen)
    some = mx.arange(N)[:, None] % 2 == 0
    holes = truth._replace(vitality=mx.where(some, truth.vitality, mx.nan))
    other = truth._replace(vitality=mx.where(some, truth.vitality, 0.9))
    even = Truth(*(of[::2] for of in truth))

    def slopes(truth, seen=seen):
        (value, count), found = nn.value_and_grad(head, lambda head: loss(head, seen, truth))(head)
        return value.item(), count.item(), dict(tree_flatten(found))

    value, count, found = slopes(holes)
    assert np.isfinite(value) and count == N * TAPS
    assert all(mx.isfinite(of).all() for of in found.values())
    column = len(ROUTES)
    half = slopes(even, Seen(*(of[::2] for of in seen)))[2]
    np.testing.assert_allclose(found["last"][..., column], half["last"][..., column], rtol=1e-4, atol=1e-4)
    assert mx.abs(found["last"][..., column] - slopes(other)[2]["last"][..., column]).max() > 1
    np.testing.assert_allclose(found["last"][..., 0], slopes(other)[2]["last"][..., 0], rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_one_counted_position_by_position():
    head, seen = random_head(), drawn(n=20)
    truth = planted("leave", seen)._replace(vitality=put(planted("leave", seen).vitality, np.s_[::3, 1], np.nan))
    told = [np.array(of, np.float64) for of in head(seen)]
    route, alive, leave, hope, earliest = told

    def nats(odds, share):
        p = 1 / (1 + np.exp(-odds))
        return -(share * np.log(p) + (1 - share) * np.log(1 - p))

    def chosen(logits, right):
        return -np.log(np.exp(logits[right]) / np.exp(logits).sum())

    slow = 0.0
    for n in range(20):
        for t in range(TAPS):
            slow += chosen(route[n, t], truth.route[n, t].item())
            slow += 0.5 * chosen(earliest[n, t], truth.earliest[n].item())
            slow += nats(leave[n, t], truth.agrees[n, t].item()) + nats(hope[n, t], truth.sure[n, t].item())
            if np.isfinite(truth.vitality[n, t].item()):
                slow += nats(alive[n, t], truth.vitality[n, t].item())
    summed, count = missed(head(seen), truth)
    assert summed.item() == pytest.approx(slow, rel=1e-4) and count.item() == 60


def test_multiplications_are_those_of_the_sizes_used():
    taps, width, hidden = TAPS, CONFIG.width, CONFIG.hidden
    known, outs = hidden + 2, len(ROUTES) + 2 + taps + 1  # a one and the path; vitality and leave; none of the taps
    first = (CONFIG.window - 1) * width * hidden
    each = width * hidden + hidden * hidden + known
    rest = (known + CONFIG.facts + CONFIG.dim) * outs
    head = Head(CONFIG)
    assert [head.macs(t) for t in range(taps)] == [(first + each, rest), (each, rest), (each, rest)]
    told = head(drawn())
    assert told.route.shape[-1] + 2 + told.earliest.shape[-1] == outs and told.earliest.shape[-1] == taps + 1


def test_what_is_dropped_is_drawn_for_the_whole_batch():
    head = Head(replace(CONFIG, dropout=0.3))
    kept = head.kept(4000, 5)
    assert kept.shape == (4000, TAPS, CONFIG.hidden) and mx.array_equal(kept, head.kept(4000, 5))
    assert (kept == 0).mean().item() == pytest.approx(0.3, abs=0.01) and kept.mean().item() == pytest.approx(
        1, abs=0.01
    )
    head, seen = random_head(replace(CONFIG, dropout=0.3)), drawn()
    kept, rest = head.kept(N, 0), planted("route", seen)
    whole = loss(head, seen, rest, kept)[0]
    parts = [
        loss(head, Seen(*(o[r::2] for o in seen)), Truth(*(o[r::2] for o in rest)), kept[r::2])[0] for r in range(2)
    ]
    assert (parts[0] + parts[1]).item() == pytest.approx(whole.item(), rel=1e-5)
    assert loss(head, seen, rest)[0].item() != pytest.approx(whole.item(), rel=1e-3)


def test_a_head_comes_back_from_disk_to_the_bit(tmp_path):
    head, seen = random_head(), drawn()
    head.zero = mx.random.normal(head.zero.shape)
    saved.save(tmp_path, CONFIG, head)
    back = saved.load(tmp_path, Config, Head)
    assert all(same(head(seen), back(seen))) and not tree_flatten(back.trainable_parameters())
