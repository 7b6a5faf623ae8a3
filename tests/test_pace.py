"""Drafts are made where they pay.

Seen to fail where the other way is never tried again, where compiling is counted, where a text has to wait for the
others, and where a step counts alike however many tokens it brings.
"""

import numpy as np
import pytest

from agp.pace import Pace


class Simulated:
    """Steps of one machine: those with drafts take `long`, those without `short`, and the first of each compiles."""

    def __init__(self, long, short, seed=0):
        self.pace, self.long, self.short = Pace(), long, short
        self.rng, self.seen, self.spent, self.tokens, self.drafted = np.random.default_rng(seed), set(), 0.0, 0.0, []

    def text(self, steps, tokens, drawn=False):
        """Shares of steps that drafted in each hundred; `tokens(step)` is what drafts bring."""
        text, drafted, before = self.pace.text(drawn), [], True
        for step in range(steps):
            draft = text.drafts()
            long, short = (of(step) if callable(of) else of for of in (self.long, self.short))
            seconds = (long if draft else short) * self.rng.lognormal(0, 0.1) * (20 if draft not in self.seen else 1)
            seconds += short if before and not draft else 0  # it begins the next one as well
            brings = tokens(step) if draft else 1
            text.took(draft, seconds, brings)
            self.seen.add(draft)
            self.spent, self.tokens, before = self.spent + seconds, self.tokens + brings, draft
            drafted.append(draft)
        return np.array([np.mean(drafted[at : at + 100]) for at in range(0, steps, 100)])


@pytest.mark.parametrize("seed", range(5))
def test_the_faster_way_is_kept_though_times_scatter(seed):
    assert (Simulated(1.5, 1.0, seed).text(400, lambda step: 2) > 0.9).all()
    assert (Simulated(1.5, 1.0, seed).text(400, lambda step: 1) < 0.15).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_step_counts_as_many_times_as_it_brings_tokens(seed):
    """Of ten with drafts six bring one token and four five, at the price of 1.6: a token takes .62, and not 1.1."""
    of, rng = Simulated(1.6, 1.0, seed), np.random.default_rng(seed)
    of.text(1000, lambda step: int(rng.choice([1, 5], p=[0.6, 0.4])))
    assert of.tokens / of.spent > 1.15


def test_each_text_is_found_out_for_itself_and_soon():
    of = Simulated(1.5, 1.0)
    of.text(100, lambda step: 4)
    assert of.text(40, lambda step: 1)[0] < 0.4  # a long one that is never foreseen
    assert of.text(100, lambda step: 4)[0] > 0.9
    assert of.text(200, lambda step: 1 if step < 100 else 4)[1] > 0.6  # and one that changes


def test_where_texts_in_general_lose_a_new_one_does_not_begin_with_drafts():
    of = Simulated(1.5, 1.0)
    for _ in range(20):
        of.text(10, lambda step: 1)
    assert of.text(4, lambda step: 1)[0] == 0
    assert of.text(24, lambda step: 1)[0] < 0.1, "and soon after it does not try for long"


def test_texts_that_are_drawn_say_nothing_of_others():
    of = Simulated(1.5, 1.0)
    for _ in range(20):
        of.text(10, lambda step: 1, drawn=True)
        of.text(10, lambda step: 4)
    assert of.text(4, lambda step: 1, drawn=True)[0] == 0
    assert of.text(4, lambda step: 4)[0] == 1


def test_texts_that_lost_once_do_not_decide_for_ever():
    of = Simulated(1.5, 1.0)
    for _ in range(20):
        of.text(10, lambda step: 1)
    assert np.mean([of.text(10, lambda step: 4)[0] for _ in range(20)][10:]) > 0.9


def test_a_machine_that_changes_is_found_out():
    """Drafts become dear; steps without them do."""
    shares = Simulated(lambda step: 1.5 if step < 200 else 5.0, 1.0).text(500, lambda step: 2)
    assert shares[0] > 0.9 and shares[4] < 0.15
    shares = Simulated(2.5, lambda step: 1.0 if step < 200 else 2.0).text(500, lambda step: 2)
    assert shares[1] < 0.15 and shares[4] > 0.9
