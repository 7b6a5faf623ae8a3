"""An alarm that is not rung while a promise is kept, and is when it is not.

Seen to fail when broken: a capital that begins at 2, bets that forget what was lost.
"""

import numpy as np
import pytest

from agp.audit import Audit


def looked_at(risk: float, count: int, seed: int) -> int | None:
    """The audited token at which the alarm rings."""
    audit, rng = Audit(0.01), np.random.default_rng(seed)
    for n, differs in enumerate(rng.random(count) < risk):
        audit.told(bool(differs))
        if audit.broken:
            return n
    return None


def test_a_promise_that_is_just_kept_rings_no_alarm():
    rung = sum(looked_at(0.01, 4000, seed) is not None for seed in range(200))
    assert rung <= 6, "one in a hundred may; more than 6 of 200 come by with a chance of 1 in 200"


def test_twice_the_promised_risk_is_found_in_twice_the_time_that_anybody_would_need():
    """ln(100) by the information in one token, of which 1,180 are needed."""
    when = [looked_at(0.02, 20_000, seed) for seed in range(40)]
    assert None not in when
    assert np.median(np.array(when, float)) < 2 * 1180


def test_a_broken_router_is_found_at_once():
    assert all((looked_at(0.2, 2000, seed) or 2000) < 120 for seed in range(40))


def test_so_many_are_drawn_and_the_seed_says_which():
    one, other, third = (Audit(0.01, 0.1, seed) for seed in (1, 1, 2))
    drawn = one.drawn(10_000)
    assert drawn.mean() == pytest.approx(0.1, abs=0.01)
    assert (drawn == other.drawn(10_000)).all() and (drawn != third.drawn(10_000)).any()


@pytest.mark.parametrize("risk, rate", [(0, 0.1), (1, 0.1), (0.01, -1), (0.01, 2)])
def test_what_is_no_share_is_refused(risk, rate):
    with pytest.raises(ValueError, match="a share between 0 and 1"):
        Audit(risk, rate)
