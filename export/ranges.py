"""How large numbers become on real positions: some chips sum no further than 32,768, half precision ends at 65,504.

Computed exactly, so that what half precision would have lost is seen.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from export import evaluate

SUMS = ("conv", "matmul")
MOST = 16_384.0  # of a sum, so that there is room for other positions


class Seen:
    """The largest size of each input and of each entry's sums."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}

    def run(self, program: Any, entry: str, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, x in feed.items():
            if not name.startswith("mask"):
                self.note(f"{entry} {name}", x)
        watch: Callable = partial(self.watch, entry)
        return evaluate.run(program, entry, feed, True, watch)

    def watch(self, entry: str, op: Any, given: evaluate.Given, found: np.ndarray) -> None:
        if op.op_type in SUMS:
            self.note(f"{entry} {op.op_type}", found)

    def note(self, name: str, x: np.ndarray) -> None:
        size = float(np.abs(x).max()) if np.isfinite(x).all() else np.inf
        self.largest[name] = max(self.largest.get(name, 0.0), size)

    def refused(self) -> list[str]:
        return [f"{name} reaches {size:,.0f}" for name, size in self.largest.items() if not size <= MOST]
