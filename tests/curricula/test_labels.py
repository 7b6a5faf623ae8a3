"""Labels agree with what their definitions say, one state at a time."""

import numpy as np
import pytest

from curricula.labels import ROUTES, Seen, budget, earliest, limits, routes, sufficient


def drawn(seed, agree=(0.2, 0.5, 0.7, 0.9), count=4000):
    rng = np.random.default_rng(seed)
    agrees = rng.random((count, 4)) < agree
    return Seen(agrees, rng.exponential(np.where(agrees, 0.5, 5.0)), rng.exponential(2.0, agrees.shape))


def slow_route(enough, tap, within, mended):
    """`mended` is None before there is a depth module."""
    if enough[tap]:
        return "accept_local"
    if mended is not None and mended[tap]:
        return "revive_local"
    for later in range(tap + 1, within + 1):
        if enough[later] or (mended is not None and mended[later]):
            return "continue_local"
    return "escalate"


@pytest.mark.parametrize("within", range(4))
@pytest.mark.parametrize("with_depth", [False, True])
def test_labels_follow_their_definitions(within, with_depth):
    seen = drawn(0, count=500)
    limit = limits(seen)
    enough = sufficient(seen, limit)
    mended = np.random.default_rng(1).random((500, 4)) < 0.3
    found = routes(enough, within, mended if with_depth else None)
    first = earliest(enough)
    for n in range(500):
        for t in range(4):
            close = seen.divergence[n, t] <= limit.kappa and seen.margin[n, t] >= limit.mu
            assert enough[n, t] == (seen.agrees[n, t] and close)
            assert ROUTES[found[n, t]] == slow_route(enough[n], t, within, mended[n] if with_depth else None)
        assert first[n] == next(t for t in range(5) if all(enough[n, t:]))


def test_limits_make_half_of_the_middle_tap_sufficient_where_the_lens_agrees_often_enough():
    seen = drawn(2)
    limit = limits(seen)
    assert limit.share == pytest.approx(0.5, abs=0.001)
    assert sufficient(seen, limit)[:, 2].mean() == pytest.approx(0.5, abs=0.001)
    assert 0.05 < (seen.margin[seen.agrees] < limit.mu).mean() < 0.15


def test_where_it_agrees_less_often_all_that_it_can():
    seen = drawn(3, agree=(0.01, 0.1, 0.2, 0.6))
    limit = limits(seen)
    assert limit.share == pytest.approx(0.18, abs=0.02)  # but for ties
    assert sufficient(seen, limit)[:, 2].mean() == limit.share


def test_a_lens_that_never_agrees_leaves_nothing_sufficient():
    seen = drawn(4, agree=(0, 0, 0, 0))
    assert not sufficient(seen, limits(seen)).any() and limits(seen).share == 0


@pytest.mark.parametrize(
    "taps, blocks, tap", [([4, 6, 8, 10], 12, 2), ([14, 19, 24, 29], 35, 2), ([14], 35, 0), ([23, 28, 33, 38], 42, 1)]
)
def test_the_local_budget_is_the_tap_nearest_seven_tenths(taps, blocks, tap):
    assert budget(taps, blocks) == tap
