"""Calls are timed as they are: what a predictor sleeps comes out, warm-ups do not count, pauses are no latency."""

import time

import numpy as np
import pytest

from export import floors, latency, power
from export.latency import Pace, quantiles


class Sleeps:
    """Takes these seconds in turn, half of them inside; the first call takes longer."""

    def __init__(self, seconds, first=0.0):
        self.seconds, self.once, self.calls, self.last = seconds, first, [], None

    def __call__(self, feed):
        seconds = self.seconds[len(self.calls) % len(self.seconds)] + (self.once if not self.calls else 0)
        self.calls.append(feed)
        time.sleep(seconds)
        self.last = seconds / 2
        return {}

    def framework(self):
        return self.last


class Clock:
    """Moves when somebody sleeps, and not else."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def test_what_it_sleeps_is_what_is_told():
    predict = Sleeps([0.004], first=0.05)
    assert latency.first(predict, 0) > 0.05
    found = latency.steady(predict, ["a", "b"], Pace(3, 10))
    assert len(found.caller) == len(found.framework) == 10 and predict.calls[1:] == ["a", "b", "a"] + ["a", "b"] * 5
    assert min(found.caller) >= 0.004 and found.framework == [0.002] * 10


def test_a_pace_is_kept_and_waiting_is_no_latency():
    clock = Clock()

    class Takes:
        def __call__(self, feed):
            clock.now += 0.003

        def framework(self):
            return None

    found = latency.steady(Takes(), [0], Pace(0, 4, 0.1), clock, clock.sleep)
    np.testing.assert_allclose(found.caller, 0.003)
    np.testing.assert_allclose(clock.slept, [0.097] * 3)
    assert found.framework == [] and quantiles(found.framework) is None


def test_quantiles_are_calls_that_were_made():
    found = quantiles([n / 1000 for n in range(1, 1001)])
    assert found == pytest.approx({"p50": 501, "p95": 951, "p99": 991, "max": 1000, "calls": 1000}, abs=1.01)
    assert quantiles([0.001, 0.002, 0.9])["p99"] == 900


def test_an_estimate_is_a_floor_and_what_is_read():
    of = {one.chip: one for one in floors.expected(61_000_000)}["M1"]
    assert of.reading == pytest.approx(1.0) and of.low == pytest.approx(1.23) and of.high == pytest.approx(1.92)
    assert floors.chip("Apple M4 Pro") == floors.CHIPS["M4"] and floors.chip("Intel Core i7") is None


def test_power_is_the_mean_after_the_first_sample():
    said = "".join(
        f"ANE Power: {mw} mW\nCPU Power: 10 mW\nCombined Power (CPU + GPU + ANE): 999 mW\n" for mw in (900, 40, 60)
    )
    assert power.drawn(said) == pytest.approx({"ANE": 0.05, "CPU": 0.01})
    assert power.drawn("powermetrics must be invoked as the superuser") == {}
