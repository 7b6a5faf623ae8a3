"""The probe is at its optimum, so that nobody can win against it by its being badly trained."""

import numpy as np
import pytest

from curricula.probe import RIDGES, crossed, missed, optimum, probe


def drawn(seed=0, n=400, features=6, noise=0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)) @ rng.normal(size=(features, features))
    odds = x @ rng.normal(size=features) - 0.5 + noise * rng.normal(size=n)
    return np.append(x, np.ones((n, 1)), axis=1), (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(float)


def descended(x, label, ridge, steps=20_000):
    """Downhill in small steps, for long; the last weight is free."""
    weights, held = np.zeros(x.shape[1]), ridge * np.append(np.ones(x.shape[1] - 1), 1e-6)
    rate = 1 / (np.linalg.norm(x, 2) ** 2 / (4 * len(x)) + ridge)
    for _ in range(steps):
        share = 1 / (1 + np.exp(-(x @ weights)))
        weights = weights - rate * (x.T @ (share - label) / len(x) + held * weights)
    return weights


@pytest.mark.parametrize("ridge", [1e-3, 1e-1])
def test_the_optimum_is_where_slow_descent_ends(ridge):
    x, label = drawn()
    np.testing.assert_allclose(optimum(x, label, ridge), descended(x, label, ridge), atol=2e-3)


def test_the_constant_is_free_wherever_it_stands():
    """And nothing else: of a rare label a held constant would say more than there is."""
    x, label = drawn()
    label = label * (np.random.default_rng(1).random(len(x)) < 0.1)
    weights = optimum(np.roll(x, 3, axis=1), label, 1e-1)
    np.testing.assert_allclose(weights, np.roll(optimum(x, label, 1e-1), 3), atol=1e-6)
    said = 1 / (1 + np.exp(-np.roll(x, 3, axis=1) @ weights))
    assert said.mean() == pytest.approx(label.mean(), rel=1e-3)
    halves = np.arange(len(x)) % 2 == 0
    np.testing.assert_allclose(
        crossed(np.roll(x, 3, axis=1), label, halves), np.roll(crossed(x, label, halves), 3), atol=1e-6
    )


def test_labels_may_be_shares():
    x, label = drawn()
    share = 0.1 + 0.8 * label
    np.testing.assert_allclose(optimum(x, share, 1e-2), descended(x, share, 1e-2), atol=2e-3)


def test_labels_that_a_plane_parts_have_an_optimum_too():
    x, _ = drawn()
    label = (x[:, 0] > 0).astype(float)
    weights = optimum(x, label, RIDGES[0])
    assert np.isfinite(weights).all() and ((x @ weights > 0) == label).mean() > 0.97
    assert missed(x @ weights, label) < 0.1


def test_what_is_missed_is_the_mean_of_nats():
    odds, label = np.array([2.0, -1.0, 0.3]), np.array([1.0, 0.0, 0.25])
    p = 1 / (1 + np.exp(-odds))
    assert missed(odds, label) == pytest.approx(-(label * np.log(p) + (1 - label) * np.log(1 - p)).mean())


def test_a_probe_is_the_optimum_with_the_ridge_that_tune_likes_best():
    """Of features on scales a thousandfold apart."""
    x, label = drawn(n=120, features=30, noise=4.0)
    scale = np.append(np.logspace(-3, 3, 30), 1.0)
    x, there = (x * scale)[:, :-1], slice(0, 60)
    said = probe(x[there], label[there], x[60:], label[60:])(x[60:])
    zero, size = x[there].mean(0), x[there].std(0)

    def ready(of):
        return np.append((of - zero) / size, np.ones((60, 1)), axis=1)

    ours = {ridge: ready(x[60:]) @ optimum(ready(x[there]), label[there], ridge) for ridge in RIDGES}
    best = min(RIDGES, key=lambda ridge: missed(ours[ridge], label[60:]))
    np.testing.assert_allclose(said, ours[best], rtol=1e-2, atol=1e-3)
    assert best != RIDGES[0] and np.abs(said - ours[RIDGES[0]]).max() > 0.1


@pytest.mark.parametrize("noise, least, most", [(0.0, 1e-4, 1e-2), (6.0, 1e-1, 1e-1)])
def test_the_ridge_is_the_one_with_which_either_half_is_best_told_by_the_other(noise, least, most):
    """Where there is nothing to learn but noise, the strongest."""
    x, label = drawn(3, n=160, features=40, noise=noise) if noise else drawn(3, n=4000)
    label = np.random.default_rng(0).permutation(label) if noise else label
    halves = np.arange(len(x)) % 2 == 0
    size = np.sqrt(np.square(x).mean(0))
    prices = {}
    for ridge in RIDGES:
        one, other = (optimum(x[of] / size, label[of], ridge) for of in (halves, ~halves))
        prices[ridge] = missed(x[~halves] / size @ one, label[~halves]) + missed(
            x[halves] / size @ other, label[halves]
        )
    best = min(prices, key=lambda ridge: prices[ridge])
    assert least <= best <= most
    np.testing.assert_allclose(crossed(x, label, halves), optimum(x / size, label, best) / size, rtol=1e-3, atol=1e-5)
