"""How long calls take: the first and the usual, back to back and paced, by the caller's clock and the framework's."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class Predictor(Protocol):
    def __call__(self, feed: Any) -> Any: ...

    def framework(self) -> float | None:
        """Seconds that the last call took inside the framework; None where it does not tell."""
        ...


class Pace(NamedTuple):
    warm: int
    calls: int
    every: float = 0.0  # seconds from one call to the next; 0 is back to back


class Times(NamedTuple):
    """Seconds of each call."""

    caller: list[float]
    framework: list[float]  # shorter where it did not tell


def first(predict: Predictor, feed: Any, clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    predict(feed)
    return clock() - began


def steady(
    predict: Predictor,
    feeds: Sequence[Any],
    pace: Pace,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    told: Callable[[], Any] = lambda: None,
) -> Times:
    """Feeds in turn; `told` is called after each that counts."""
    for n in range(pace.warm):
        predict(feeds[n % len(feeds)])
    found, due = Times([], []), clock()
    for n in range(pace.calls):
        if (early := due - clock()) > 0:
            sleep(early)
        began = clock()
        predict(feeds[n % len(feeds)])
        found.caller.append(clock() - began)
        inside = predict.framework()
        if inside is not None:
            found.framework.append(inside)
        due = began + pace.every
        told()
    return found


def quantiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Milliseconds."""
    if not seconds:
        return None
    ms = 1e3 * np.asarray(seconds)
    p50, p95, p99 = np.quantile(ms, [0.5, 0.95, 0.99], method="higher")
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": float(ms.max()), "calls": len(seconds)}
