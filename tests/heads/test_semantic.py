"""A few latents are found again in what was made of them, and nothing of a state goes around them."""

import mlx.core as mx
import numpy as np
import pytest

from agp.train import FitConfig, fit
from heads import saved, semantic
from heads.semantic import Config, Head

CONFIG = Config(
    state=48, concepts=("a", "b", "c", "d", "e"), types=(2, 2, 1), width=96, active=(1, 2, 1), picks=3, each=2
)


@pytest.fixture
def head():
    mx.random.seed(1)
    made = Head(CONFIG)
    made.naming.weight = mx.random.normal(made.naming.weight.shape)
    made.mean = mx.random.normal(made.mean.shape)
    made.size = 0.1 * mx.random.normal(made.size.shape)
    return made


def states(count, seed=2):
    return 3 * mx.random.normal((count, CONFIG.state), key=mx.random.key(seed))


def left_over(head, seen, code):
    return (mx.square(seen - code.values @ head.directions()).sum() / mx.square(seen).sum()).item()


def test_exactly_so_many_of_each_type_are_active(head):
    code, _, _ = head(states(50))
    chosen = np.array(code.chosen)
    for part, count in ((slice(0, 2), 1), (slice(2, 4), 2), (slice(4, 5), 1), (slice(5, None), 6)):
        assert (chosen[:, part].sum(1) == count).all()
    values = np.array(code.values)
    assert (values >= 0).all() and (values[~chosen] == 0).all()
    assert (values[:, 5:] > 0).sum() > 0.9 * chosen[:, 5:].sum()


def test_the_concepts_that_score_highest_are_the_active_ones(head):
    code, _, _ = head(states(50))
    scores, chosen = np.array(code.scores), np.array(code.chosen)
    assert (chosen[:, :2].argmax(1) == scores[:, :2].argmax(1)).all()


def test_latents_that_a_state_was_made_of_are_found(head):
    rng = np.random.default_rng(0)
    atoms, truth = np.array(head.directions()), np.zeros((200, CONFIG.width), bool)
    for row in truth:
        row[rng.choice(CONFIG.width, 3, replace=False)] = True
    head.naming.weight = mx.zeros_like(head.naming.weight)
    seen = mx.array((truth * rng.uniform(1, 2, truth.shape)) @ atoms[5:], mx.float32)
    none = mx.zeros((200, 5))
    code = head.pursue(seen, none, none > 0, head.highest)
    found = np.array(code.chosen)[:, 5:]
    assert found[truth].mean() > 0.97
    assert left_over(head, seen, code) < 0.02


def test_more_than_one_look_finds_more(head):
    """As many latents, of which all are chosen at once, leave more over: the pursuit is worth its steps."""
    seen = semantic.normalised(states(300)) - head.mean
    none = mx.zeros((300, 5))
    lefts = []
    for picks, each in ((3, 2), (1, 6)):
        head.config = Config(**{**vars(CONFIG), "picks": picks, "each": each, "settle": 4 - picks})
        lefts.append(left_over(head, seen, head.pursue(seen, none, none > 0, head.highest)))
    assert lefts[0] < 0.97 * lefts[1]


def test_nothing_of_a_state_goes_around_the_latents(head):
    """Where none is active all states come out the same, in direction and in size."""
    made = np.array(head.mended(states(20) * mx.arange(1, 21)[:, None]))
    np.testing.assert_allclose(made, np.broadcast_to(made[:1], made.shape), rtol=1e-6)
    head.levels = mx.zeros_like(head.levels) + 1e-6
    assert np.array(head.mended(states(20))).std(0).mean() > 0.1


def test_thresholds_of_its_own_decide_for_each_latent(head):
    head.levels = mx.where(mx.arange(CONFIG.width) == 7, 0.01, semantic.NEVER) * mx.ones_like(head.levels)
    head.limits = mx.where(mx.arange(5) == 3, -1e9, semantic.NEVER)
    chosen = np.array(head(states(50), exactly=False)[0].chosen)
    assert chosen[:, 3].all() and chosen[:, 12].any() and chosen.sum() == chosen[:, [3, 12]].sum()


def test_a_loss_is_the_sum_over_positions_and_unknown_concepts_weigh_nothing(head):
    given, labels = states(30), mx.ones((30, 5))
    weights = mx.where(mx.arange(5) < 3, 1.0, 0.0) * mx.ones((30, 5))
    whole, count = semantic.loss(head, given, labels, weights)
    parts = [semantic.loss(head, given[at : at + 10], labels[:10], weights[:10])[0].item() for at in (0, 10, 20)]
    assert whole.item() == pytest.approx(sum(parts), rel=1e-5) and count.item() == 30
    other = mx.where(mx.arange(5) < 3, labels, 0.0)
    assert semantic.loss(head, given, other, weights)[0].item() == pytest.approx(whole.item(), rel=1e-6)


def test_it_learns_what_states_are_made_of_and_comes_back_from_disk(head, tmp_path):
    rng = np.random.default_rng(0)
    basis = rng.standard_normal((96, 48)).astype(np.float32)
    parts = rng.uniform(size=(2000, 96)) < 0.04
    given = mx.array((parts * rng.uniform(1, 2, parts.shape)) @ basis + 0.5, mx.float32)
    labels = mx.array(parts[:, :5].astype(np.float32))

    def batches(step, micro):
        at = mx.array(np.random.default_rng(step).integers(0, 1500, 128))
        return given[at], labels[at], mx.ones((128, 5)) + 5 * labels[at]

    def held():
        return tuple(x.item() for x in semantic.loss(head, given[1500:], labels[1500:], mx.ones((500, 5))))

    head.mean, head.naming.weight = semantic.normalised(given).mean(0), mx.zeros_like(head.naming.weight)
    before = held()[0]
    fit(head, semantic.loss, batches, FitConfig(steps=60, rate=1e-2), tmp_path / "fit")
    assert held()[0] < 0.7 * before
    saved.save(tmp_path / "head", CONFIG, head)
    again = saved.load(tmp_path / "head", Config, Head)
    assert again.config == CONFIG
    np.testing.assert_array_equal(np.array(again(given[:50])[1]), np.array(head(given[:50])[1]))


def test_states_of_any_size_are_read_alike(head):
    given = states(20)
    code, seen, _ = head(given)
    larger, seen_larger, _ = head(1000 * given)
    np.testing.assert_array_equal(np.array(code.chosen), np.array(larger.chosen))
    np.testing.assert_allclose(np.array(seen), np.array(seen_larger), rtol=2e-3, atol=2e-3)
