"""A policy leaves where it says, costs what is counted one token at a time, and the cheapest set of exits is found."""

from itertools import combinations

import numpy as np
import pytest

from agp.macs import Macs
from curricula.policy import Facing, cheapest, grid, left, losses, price

PRICE = price(Macs(10, (20, 20, 20, 20, 20), 30), taps=[1, 3], looking=[5, 4])  # 140 in all


def drawn(seed: int, documents: int = 60) -> Facing:
    """Scores that say how likely a token differs; later taps differ less."""
    rng = np.random.default_rng(seed)
    document = np.repeat(np.arange(documents), rng.integers(1, 12, documents))
    score = rng.random((len(document), 2))
    return Facing(score, rng.random(score.shape) > score ** [0.5, 0.2], document)


@pytest.mark.parametrize("taps", [(0,), (1,), (0, 1)])
def test_losses_are_those_counted_one_by_one(taps):
    given = drawn(0, documents=7)
    tried = grid(given.score[:, list(taps)], 9)
    loss, leaving = losses(given, taps, tried)
    assert (np.diff(tried) < 0).all() and loss.shape == (7, len(tried))
    for d in range(7):
        for g, threshold in enumerate(tried):
            tokens = np.flatnonzero(given.document == d)
            exits = [next((t for t in taps if given.score[n, t] >= threshold), None) for n in tokens]
            assert leaving[d, g] == pytest.approx(np.mean([t is not None for t in exits]))
            wrong = [t is not None and given.differs[n, t] for n, t in zip(tokens, exits, strict=True)]
            assert loss[d, g] == pytest.approx(np.mean(wrong))


def test_a_token_costs_its_blocks_its_head_and_every_check_on_its_way():
    score = np.array([[0.9, 0.9], [0.1, 0.9], [0.1, 0.1]])
    for taps, wanted in (
        ((0, 1), [10 + 40 + 30 + 5, 10 + 80 + 30 + 9, 140 + 9]),
        ((1,), [124, 124, 144]),
        ((0,), [85, 145, 145]),
    ):
        at = left(score, taps, 0.5)
        assert PRICE.of(at, taps) * 140 == pytest.approx(wanted)
    assert PRICE.of(left(score, (0, 1), None), (0, 1)) * 140 == pytest.approx([149, 149, 149])


def test_the_exits_that_cost_least_within_the_risk_are_found():
    given = drawn(1, documents=400)
    found = cheapest(given, PRICE, 0.1, 30)
    costs = {}
    for taps in [taps for size in (1, 2) for taps in combinations((0, 1), size)]:
        tried = grid(given.score[:, list(taps)], 30)
        within = [t for t in tried if losses(given, taps, np.array([t]))[0].mean() <= 0.1]
        costs[taps] = PRICE.of(left(given.score, taps, min(within)), taps).mean()
    assert found == min(costs, key=lambda taps: costs[taps])
    assert len({round(cost, 6) for cost in costs.values()}) == 3


def test_the_grid_reaches_from_hardly_any_to_all():
    score = np.random.default_rng(0).random((5000, 1))
    tried = grid(score, 50)
    shares = [(score >= t).mean() for t in tried]
    assert shares[0] <= 0.001 and shares[-1] == 1 and np.diff(shares).max() < 0.05
