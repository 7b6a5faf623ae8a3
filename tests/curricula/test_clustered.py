"""Estimates are those of slow definitions, and intervals count clusters: positions of one document say little new."""

import numpy as np
import pytest

from curricula.clustered import auroc, auroc_of, coverage_area_of, mean, resampled


def scores(seed=0, n=300, ties=True):
    rng = np.random.default_rng(seed)
    label = rng.random(n) < 0.4
    score = rng.normal(size=n) + label
    return (np.round(score, 1) if ties else score), label, rng.integers(0, 4, n).astype(float)


def pairwise(score, label, weights):
    won = whole = 0.0
    for i in np.flatnonzero(label):
        for j in np.flatnonzero(~label):
            both = weights[i] * weights[j]
            won += both * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
            whole += both
    return won / whole


@pytest.mark.parametrize("weighted", [False, True])
def test_auroc_is_how_often_a_true_one_scores_higher(weighted):
    score, label, weights = scores()
    assert len(np.unique(score)) < 60
    weights = weights if weighted else np.ones(len(score))
    assert auroc(score, label, weights) == pytest.approx(pairwise(score, label, weights), abs=1e-12)


def test_auroc_of_one_score_for_all_is_a_half_and_without_both_kinds_it_is_none():
    score, label, _ = scores()
    assert auroc(np.zeros(len(label)), label) == 0.5
    assert np.isnan(auroc(score, np.ones(len(label), bool)))
    assert np.isnan(auroc_of(score, label)(label.astype(float)))


@pytest.mark.parametrize("seed", range(3))
def test_the_area_is_the_mean_of_the_risks_of_all_coverages(seed):
    score, label, weights = scores(seed, ties=False)
    repeated = np.repeat(np.arange(len(score)), weights.astype(int))  # each as often as it weighs
    order = sorted(repeated, key=lambda i: -score[i])
    risks = [np.mean([label[i] for i in order[: k + 1]]) for k in range(len(order))]
    whole = coverage_area_of(score, label)
    assert whole(weights) == pytest.approx(np.mean(risks), abs=0.005)  # among copies of one position the order is none
    alone = sorted(range(len(score)), key=lambda i: -score[i])
    risks = [np.mean(label[alone[: k + 1]]) for k in range(len(score))]
    assert whole(np.ones(len(score))) == pytest.approx(np.mean(risks), abs=1e-12)


def test_the_best_order_has_the_least_area():
    _, label, _ = scores()
    ones = np.ones(len(label))
    areas = [coverage_area_of(score, label)(ones) for score in (-label.astype(float), np.zeros(300), label * 1.0)]
    assert areas == sorted(areas) and areas[0] < 0.15 and areas[2] > 0.7


def test_a_mean_is_of_positions_as_often_as_each_weighs():
    cluster, values = np.array([0, 0, 1, 1, 1]), np.array([1.0, 0, 1, 1, 0])
    assert mean(values, cluster).value == pytest.approx(0.6)
    assert mean(values, cluster, np.array([3, 0, 1, 0, 2])).value == pytest.approx(2 / 3)
    assert mean(values, cluster, np.array([1, 1, 0, 0, 0])).interval == (0.5, 0.5)  # of one cluster nothing is known


def documents(rng, clusters=40, size=15):
    """Positions of a document are right or wrong together."""
    easy = rng.beta(1, 1, clusters)
    cluster = np.repeat(np.arange(clusters), size)
    return (rng.random(clusters * size) < easy[cluster]).astype(float), cluster


ESTIMATES = {
    "mean": lambda values, cluster: mean(values, cluster),
    "resampled": lambda values, cluster: resampled(lambda w: float(w @ values / w.sum()), cluster, count=200),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_an_interval_holds_the_truth_as_often_as_it_says_and_one_that_ignores_clusters_does_not(name):
    rng, estimate = np.random.default_rng(0), ESTIMATES[name]
    held = {"clustered": 0, "alone": 0}
    trials = 40 if name == "mean" else 100
    for _ in range(trials):
        values, cluster = documents(rng)
        for how, of in (("clustered", cluster), ("alone", np.arange(len(values)))):
            low, high = estimate(values, of).interval
            held[how] += low <= 0.5 <= high
    assert held["clustered"] / trials >= 0.87 and held["alone"] / trials <= 0.75


def test_an_interval_comes_out_the_same_again():
    values, cluster = documents(np.random.default_rng(1))
    statistic = lambda w: float(w @ values / w.sum())
    assert resampled(statistic, cluster) == resampled(statistic, cluster)
    assert resampled(statistic, cluster).interval != resampled(statistic, cluster, seed=1).interval


def test_draws_without_both_kinds_are_left_out():
    label, cluster = np.array([True] + [False] * 5), np.arange(6)
    found = resampled(auroc_of(np.arange(6.0)[::-1].copy(), label), cluster)
    assert found.value == 1 and found.interval == (1, 1)
