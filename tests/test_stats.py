"""Intervals agree with published figures, cover what they claim, and repeat for a seed."""

import numpy as np
import pytest

from agp.stats import bootstrap_mean, paired_ratio, wilson


def test_wilson_gives_the_textbook_interval():
    value, (low, high) = wilson(81, 263)  # Newcombe 1998, table I, method 3
    assert value == pytest.approx(81 / 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_wilson_is_honest_at_the_ends():
    assert wilson(0, 10).interval == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(10, 10).interval == (pytest.approx(0.7225, abs=1e-4), 1.0)


def test_wilson_refuses_what_is_no_share():
    for successes, trials in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="successes"):
            wilson(successes, trials)


def test_the_bootstrap_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(100):
        _, (low, high) = bootstrap_mean(rng.exponential(size=60).tolist(), seed, confidence=0.9)
        hits += low <= 1 <= high
    assert 80 <= hits <= 98


def test_a_seed_repeats_and_another_does_not():
    values = [1.0, 2.0, 4.0, 8.0, 9.0]
    assert bootstrap_mean(values, 1) == bootstrap_mean(values, 1)
    assert bootstrap_mean(values, 1).interval != bootstrap_mean(np.random.default_rng(0).random(5).tolist(), 1).interval


def test_equal_values_have_no_spread():
    assert bootstrap_mean([3.0] * 4, 0) == (3.0, (3.0, 3.0))


def test_with_counts_long_documents_weigh_more():
    assert bootstrap_mean([10.0, 1.0], 0, counts=[90, 10]).value == pytest.approx(0.11)


def test_documents_not_tokens_are_resampled():
    """A hundred tokens in two documents are two units: the interval spans both documents' means."""
    assert bootstrap_mean([0.0, 50.0], 0, counts=[50, 50]).interval == (0.0, 1.0)


def test_a_paired_ratio_ignores_what_both_sides_share():
    drift = np.linspace(1, 3, 21)
    value, (low, high) = paired_ratio((1.2 * drift).tolist(), drift.tolist(), seed=0)
    assert value == pytest.approx(1.2) and low == pytest.approx(1.2) and high == pytest.approx(1.2)


def test_one_wild_pair_does_not_move_the_median():
    assert paired_ratio([1, 1, 1, 1, 100], [1, 1, 1, 1, 1], seed=0).value == 1


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [[1.0], [2.0]]])
def test_what_is_no_list_of_numbers_is_refused(bad):
    with pytest.raises(ValueError, match="finite numbers"):
        bootstrap_mean(bad, 0)


def test_pairs_must_match():
    with pytest.raises(ValueError, match="pairs"):
        paired_ratio([1, 2], [1], seed=0)
    with pytest.raises(ValueError, match="above 0"):
        paired_ratio([1], [0], seed=0)
