"""A policy leaves where it says, costs what is counted one token at a time, and the cheapest set of exits is found."""

from itertools import combinations

import numpy as np
import pytest

from agp.macs import Macs
from curricula.policy import GATES, Facing, cheapest, gated, grid, left, losses, price

PRICE = price(Macs(10, (20, 20, 20, 20, 20), 30), taps=[1, 3], hoping=[1, 2], looking=[4, 2])  # 140 in all


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
    given = Facing(score, np.zeros(score.shape, bool), np.arange(3))
    for taps, wanted in (
        ((0, 1), [10 + 40 + 30 + 5, 10 + 80 + 30 + 9, 140 + 9]),
        ((1,), [125, 125, 145]),  # hope there has read the first tap too
        ((0,), [85, 145, 145]),
    ):
        at = left(score, taps, 0.5)
        assert PRICE.of(given, taps, at) * 140 == pytest.approx(wanted)
    assert PRICE.of(given, (0, 1), left(score, (0, 1), None)) * 140 == pytest.approx([149, 149, 149])


def test_where_there_is_too_little_hope_nobody_looks_and_nobody_leaves():
    given = Facing(np.full((3, 2), 0.9), np.ones((3, 2), bool), np.arange(3))
    facing = gated(given, np.array([[0.3, 0.3], [0.1, 0.3], [0.1, 0.1]]), [0.2, 0.3])
    at = left(facing.score, (0, 1), 0.5)
    assert at.tolist() == [0, 1, 2]
    hoped, looked = 1 + 2, 2  # at both taps; a look at the second alone
    wanted = [10 + 40 + 30 + 5, 10 + 80 + 30 + hoped + looked, 140 + hoped]
    assert PRICE.of(facing, (0, 1), at) * 140 == pytest.approx(wanted)
    assert (losses(facing, (0, 1), np.array([0.5]))[0][:, 0] == [1, 1, 0]).all()


def test_the_exits_and_gates_that_cost_least_within_the_risk_are_found():
    given = drawn(1, documents=400)
    hope = given.score + 0.2 * np.random.default_rng(2).random(given.score.shape)
    found = cheapest(given, hope, PRICE, 0.1, 30)
    costs = {}
    for taps in [taps for size in (1, 2) for taps in combinations((0, 1), size)]:
        for shut in GATES:
            gate = tuple(np.quantile(hope, shut, axis=0)) if shut else (-np.inf, -np.inf)
            facing = gated(given, hope, gate)
            tried = grid(facing.score[:, list(taps)], 30)
            within = [t for t in tried if losses(facing, taps, np.array([t]))[0].mean() <= 0.1]
            costs[taps, gate] = PRICE.of(facing, taps, left(facing.score, taps, min(within))).mean()
    best = min(costs, key=lambda plan: costs[plan])
    assert (found.taps, tuple(found.gate)) == best
    assert len({round(cost, 6) for cost in costs.values()}) > 10


def test_the_grid_reaches_from_hardly_any_to_all():
    score = np.random.default_rng(0).random((5000, 1))
    tried = grid(score, 50)
    shares = [(score >= t).mean() for t in tried]
    assert shares[0] <= 0.001 and shares[-1] == 1 and np.diff(shares).max() < 0.05
