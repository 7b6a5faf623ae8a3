"""Drafts are made where they pay. Seen to fail where the other way is never tried again, or compiling is counted."""

import numpy as np
import pytest

from agp.pace import Pace


def drafted(with_drafts, without, steps=400):
    """Shares of steps that drafted in each hundred, where a token takes so long (first compiled) in either way."""
    pace, found, seen = Pace(), [], set()
    for step in range(steps):
        draft = pace.drafts()
        seconds = (with_drafts if draft else without)(step)
        pace.took(draft, 3 * seconds + (5.0 if draft not in seen else 0), 3)
        seen.add(draft)
        found.append(draft)
    return np.array(found).reshape(-1, 100).mean(1)


@pytest.mark.parametrize("seed", range(5))
def test_the_faster_way_is_kept_though_times_scatter(seed):
    rng = np.random.default_rng(seed)
    scattered = lambda seconds: lambda step: seconds * rng.lognormal(0, 0.1)
    assert (drafted(scattered(1.0), scattered(1.5)) > 0.9).all()
    assert (drafted(scattered(1.5), scattered(1.0)) < 0.1).all()


def test_what_becomes_slower_is_left():
    shares = drafted(lambda step: 1.0 if step < 200 else 2.0, lambda step: 1.5)
    assert shares[0] > 0.9 and shares[3] < 0.1


def test_what_becomes_faster_is_found():
    shares = drafted(lambda step: 2.0 if step < 100 else 1.0, lambda step: 1.5)
    assert shares[0] < 0.1 and shares[3] > 0.9
