"""A better head is told from the best of what is simpler, and one that is only as good is not."""

import numpy as np
import pytest

from agp.stats import Estimate
from curricula import against
from curricula.against import COST, accepting, curve, reliability, routes
from curricula.clustered import auroc, coverage_area_of
from curricula.features import Features
from curricula.labels import ACCEPT, limits, sufficient
from curricula.positions import judged
from curricula.teacher import teacher
from heads.trajectory import Told
from tests.curricula.run import smoke

ROLES, CLEAR = ("heads", "tune", "test"), 0.3


@pytest.fixture(scope="module")
def given():
    """What the trajectory stage compares on, but for what its head said."""
    found = {role: Features(smoke() / "harvest", role) for role in ROLES}
    limit = limits(judged(found["tune"]))
    return teacher(smoke() / "domain").model, found, {r: sufficient(judged(of), limit) for r, of in found.items()}


def told(sure, alive=None):
    """A head that is `sure`, N T, of accepting, and of no other route."""
    route = np.zeros((*sure.shape, 4))
    route[..., ACCEPT] = sure + np.log(3)
    nothing = np.zeros(sure.shape)
    return Told(route, nothing if alive is None else alive, nothing, nothing, np.zeros((*sure.shape, 5)))


def measured(given, said):
    decoder, found, enough = given
    return against.measured(decoder, found, enough, CLEAR, np.where(enough["test"], ACCEPT, 3), said)[0]


def test_a_head_that_knows_is_clearly_better_and_one_that_repeats_a_baseline_is_not(given):
    decoder, found, enough = given
    rng = np.random.default_rng(0)
    knows = measured(given, told(3.0 * enough["test"] + rng.normal(size=enough["test"].shape) / 2))
    others = against.simpler(decoder, found, enough, CLEAR)
    best = {tap: of["auroc"] for tap, of in knows["best_baseline"].items()}
    copied = np.stack([others[best[str(tap)]][:, t] for t, tap in enumerate(found["test"].taps)], axis=1)
    repeats = measured(given, told(copied))
    said, ones = told(rng.normal(size=copied.shape)), np.ones(found["test"].count)
    draws = measured(given, said)
    assert knows["auroc_gain_surely"] > 0 and knows["auroc_worst"] > 0.95
    assert repeats["auroc_gain_surely"] == 0 and not repeats["auroc_gain_surely"] > 0
    assert draws["auroc_gain_surely"] < -0.1
    for t, tap in enumerate(map(str, found["test"].taps)):
        assert repeats["auroc_gain"][tap]["value"] == 0 and repeats["auroc_gain"][tap]["interval"] == [0, 0]
        areas = {name: coverage_area_of(of[:, t], ~enough["test"][:, t])(ones) for name, of in others.items()}
        assert draws["auroc_gain"][tap]["value"] == pytest.approx(
            draws["auroc"][tap]["value"] - max(auroc(of[:, t], enough["test"][:, t]) for of in others.values())
        )
        ours = coverage_area_of(accepting(said.route)[1][:, t], ~enough["test"][:, t])(ones)
        assert draws["risk_coverage_gain"][tap]["value"] == pytest.approx(min(areas.values()) - ours)
        assert knows["risk_coverage_gain"][tap]["value"] > 0 > draws["risk_coverage_gain"][tap]["interval"][0]


def test_where_there_is_nothing_to_tell_apart_nothing_is_compared_and_that_is_said(given):
    decoder, found, enough = given
    enough = {role: of.copy() for role, of in enough.items()}
    enough["test"][:, 0], enough["test"][:, 1] = False, True
    first, second, *rest = map(str, found["test"].taps)
    metrics = measured((decoder, found, enough), told(np.zeros(enough["test"].shape)))
    assert metrics["one_sided"] == {first: "none", second: "all"}
    for name in against.COMPARED:
        assert list(metrics[name]) == rest
    assert metrics["auroc_worst"] == 0.5 and 0 <= metrics["route_accuracy"]["value"] <= 1
    enough["test"][:] = False
    metrics = measured((decoder, found, enough), told(np.zeros(enough["test"].shape)))
    assert metrics["auroc_worst"] is None and metrics["auroc_gain_least"] is None


def test_vitality_is_told_better_by_one_that_knows_it_and_worse_by_one_that_does_not(given):
    test = given[1]["test"]
    alive = np.clip(test.whole("vitality"), 0.02, 0.98).astype(float)
    odds, sure = np.log(alive / (1 - alive)), np.zeros(alive.shape)
    knows, shuffled = (measured(given, told(sure, of)) for of in (odds, np.random.default_rng(0).permutation(odds)))
    assert knows["vitality_gain"] > 0.9 and knows["vitality_gain_interval"][0] > 0.8
    assert shuffled["vitality_gain"] < 0


def test_baselines_are_what_they_are_called(given):
    decoder, found, enough = given
    test, others = found["test"], against.simpler(decoder, found, enough, CLEAR)
    assert others.keys() == {"constant", "confidence", "margin", "entropy", "probe", "state probe"}
    assert (others["constant"] == 0).all() and np.array_equal(others["margin"], test.whole("margin"))
    np.testing.assert_allclose(others["entropy"], -test.whole("entropy"), rtol=1e-6)
    np.testing.assert_allclose(others["confidence"], np.log1p(-np.exp(test.whole("doubt"))), rtol=1e-4, atol=1e-6)
    assert np.abs(others["probe"] - others["state probe"]).max() > 0.1
    lead = against.lens(test, CLEAR)[..., -1]
    assert np.array_equal(lead, np.minimum(test.whole("margin"), CLEAR)) and 0 < (lead == CLEAR).mean() < 1


def test_the_probe_is_weighed_against_plain_facts_on_tune_as_the_head_is(given):
    """What it learned on `heads` is worthless here; the facts alone tell, and only where `tune` is asked."""
    decoder, found, enough = given
    shuffled = np.random.default_rng(0).permutation(enough["heads"])
    others = against.simpler(decoder, found, enough | {"heads": shuffled}, CLEAR)
    worth = {
        name: np.mean([auroc(of[:, t], enough["test"][:, t]) for t in range(of.shape[1])])
        for name, of in others.items()
    }
    assert worth["probe"] > max(worth["state probe"], 0.5) + 0.1


def test_the_chance_of_accepting_is_that_of_a_softmax_over_routes():
    logits = np.random.default_rng(0).normal(size=(20, 3, 4)) * 3
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chance, sure = accepting(logits)
    np.testing.assert_allclose(chance, share[..., ACCEPT], rtol=1e-9)
    np.testing.assert_allclose(sure, np.log(chance / (1 - chance)), rtol=1e-7)


def test_routes_are_counted_one_by_one():
    rng = np.random.default_rng(0)
    true, guess = rng.choice(4, (200, 3), p=[0.5, 0.3, 0.2, 0.0]), rng.integers(4, size=(200, 3))
    found = routes(guess, true, np.arange(200) // 10)
    pairs = list(zip(true.ravel(), guess.ravel(), strict=True))
    confusion = [[sum(pair == (t, g) for pair in pairs) for g in range(4)] for t in range(4)]
    assert found["confusion"] == confusion
    assert found["route_accuracy"]["value"] == pytest.approx(np.mean([t == g for t, g in pairs]))
    assert found["unsafe_accept_rate"]["value"] == pytest.approx(np.mean([g == 0 and t != 0 for t, g in pairs]))
    assert found["mean_cost"] == pytest.approx(np.mean([COST[t][g] for t, g in pairs]))
    each = []
    for c in range(3):  # the last never is right: there is nothing to find
        hits = sum(t == g == c for t, g in pairs)
        precision, recall = hits / sum(g == c for _, g in pairs), hits / sum(t == c for t, _ in pairs)
        each.append(2 * precision * recall / (precision + recall))
    assert found["macro_f1"]["value"] == pytest.approx(np.mean(each))
    for name in ("route_accuracy", "macro_f1", "unsafe_accept_rate"):
        low, high = found[name]["interval"]
        assert low < found[name]["value"] < high


def test_accepting_too_early_is_the_dearest_mistake():
    cost = np.array(COST)
    assert (np.diag(cost) == 0).all() and cost[1:, ACCEPT].min() >= 5 * np.delete(cost, ACCEPT, axis=1).max()


def test_a_curve_has_the_risk_of_those_that_are_surest():
    rng = np.random.default_rng(0)
    score, wrong = rng.normal(size=500), rng.random(500) < 0.3
    found = curve(score, wrong)
    order = np.argsort(-score)
    for coverage, risk in zip(found["coverage"], found["risk"], strict=True):
        assert risk == pytest.approx(wrong[order[: round(coverage * 500)]].mean(), abs=1e-4)
    assert found["coverage"][-1] == 1 and found["risk"][-1] == pytest.approx(wrong.mean(), abs=1e-5)


def test_a_chance_that_is_true_is_reliable_and_one_that_is_too_sure_is_not():
    rng = np.random.default_rng(0)
    chance = rng.random(20_000)
    label = rng.random(20_000) < chance
    assert reliability(chance, label)["ece"] < 0.02
    assert reliability(np.where(chance > 0.5, 1.0, 0.0), label)["ece"] == pytest.approx(0.25, abs=0.03)


def test_an_estimate_is_told_as_json():
    assert against.estimate(Estimate(0.5, (0.4, 0.6))) == {"value": 0.5, "interval": [0.4, 0.6]}
