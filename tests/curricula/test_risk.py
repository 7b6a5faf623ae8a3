"""A promise about risk is kept as often as it says; the naive threshold's is not, so the check can fail."""

import numpy as np
import pytest

from curricula.policy import Facing, grid, losses
from curricula.risk import choose, violations, won


def drawn(seed, documents=1000, tokens=12):
    """Tokens whose score says how likely they differ; documents of unequal difficulty, and so not independent."""
    rng = np.random.default_rng(seed)
    document = np.repeat(np.arange(documents), rng.integers(1, 2 * tokens, documents))
    score = np.clip(rng.beta(5, 2, len(document)) - 0.3 * (rng.random(documents) < 0.1)[document], 0, 1)
    return Facing(score[:, None], (rng.random(len(document)) > score**0.3)[:, None], document)


def table(seed, **more):
    tokens = drawn(seed, **more)
    tried = grid(tokens.score, 60)
    return (*losses(tokens, (0,), tried), tried)


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_a_bet_against_the_truth_is_won_no_more_often_than_said(alpha):
    """Losses whose mean is alpha exactly: to win is to be wrong."""
    rng, wins = np.random.default_rng(1), 0
    for _ in range(1000):
        wins += won((rng.random(1000) < 2 * alpha) * 0.5, alpha, 0.1)
    assert wins / 1000 <= 0.1 + 3 * (0.1 * 0.9 / 1000) ** 0.5


def test_a_bet_for_the_truth_is_won_with_documents_enough():
    rng = np.random.default_rng(2)
    assert won((rng.random(1000) < 0.005) * 0.5, 0.01, 0.1)
    assert not won(np.zeros(200), 0.01, 0.1)  # below ln(10) / alpha documents nothing can be promised
    assert won(np.zeros(300), 0.01, 0.1)


@pytest.mark.parametrize("texts", [24, 12, 6])
def test_windows_of_a_text_counted_one_by_one_promise_what_they_cannot(texts):
    """Half of the texts go wrong in .12 of their tokens, so the risk is .06; .05 may be promised one time in ten."""
    wrong = np.zeros(2)
    for seed in range(200):
        rng = np.random.default_rng([seed, texts])
        text = np.repeat(np.arange(texts), 1200 // texts)
        windows = rng.binomial(16, rng.choice([0.0, 0.12], size=texts)[text]) / 16
        units = windows, np.bincount(text, windows) / np.bincount(text)
        for which, loss in enumerate(units):
            chosen = choose(loss[:, None], np.ones((len(loss), 1)), np.array([0.5]), 0.05, 0.1, seed)
            wrong[which] += chosen.threshold is not None
    assert wrong[0] / 200 > 0.12 and wrong[1] / 200 <= 0.1


@pytest.mark.parametrize("alpha", [0.02, 0.05])
def test_promises_are_kept_and_naive_ones_are_not(alpha):
    loss, leaving, grid = table(3, documents=3000)
    kept = violations(loss, leaving, grid, alpha, 0.1, size=1000)
    assert kept <= 0.1
    pool, naive = loss.mean(0), 0
    for seed in range(200):
        some = np.random.default_rng(seed).choice(len(loss), 1000, replace=False)
        below = np.flatnonzero(loss[some].mean(0) <= alpha)
        naive += bool(len(below)) and pool[below[-1]] > alpha
    assert naive / 200 > 0.2


def test_a_laxer_promise_lets_more_leave():
    loss, leaving, grid = table(4)
    shares = [choose(loss, leaving, grid, alpha, 0.1, 0).leaving for alpha in (0.01, 0.02, 0.05)]
    assert shares == sorted(shares) and shares[-1] > shares[0]


def test_nothing_leaves_where_nothing_can_be_promised():
    loss = np.ones((1000, 3))
    assert choose(loss, loss, np.array([0.9, 0.5, 0.1]), 0.05, 0.1, 0).threshold is None
