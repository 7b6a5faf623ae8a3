"""What a figure is: a number a command can make again, with its interval and the goal it is held to.

`{"value": 0.21, "interval": [0.20, 0.22], "goal": "<= 0.25", "command": "agp bench train"}`. A `value` that is a dict
holds one number a size or a setting, `interval` then likewise, and the goal holds for each.
"""

import math
import operator
import re
from typing import NamedTuple

COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}
GOAL = re.compile(r"\s*(<=|>=|<|>|==)\s*(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*")


class Entry(NamedTuple):
    name: str
    value: float
    interval: list[float] | None
    goal: str | None
    command: str
    proxy: bool  # made off a Mac

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return "no goal"
        return "met" if met(self.value, self.goal) else "missed"


def met(value: float, goal: str) -> bool:
    found = GOAL.fullmatch(goal)
    if not found:
        raise ValueError(f"cannot read the goal {goal!r}; write it as '<= 1.25', with one of {', '.join(COMPARE)}")
    return COMPARE[found[1]](value, float(found[2]))


def entries(name: str, figure: dict) -> list[Entry]:
    """One entry a value; raises with everything that is wrong with the figure."""
    if wrong := faults(figure):
        raise ValueError(f"figure {name} {'; '.join(wrong)}")
    value, interval = figure["value"], figure.get("interval")
    rest = (figure.get("goal"), figure["command"], figure.get("proxy", False))
    if not isinstance(value, dict):
        return [Entry(name, value, interval, *rest)]
    intervals = interval or {}
    return [Entry(f"{name}[{label}]", number, intervals.get(label), *rest) for label, number in value.items()]


def faults(figure: dict) -> list[str]:
    found = [f"has no {key}" for key in ("value", "command") if key not in figure]
    value, interval, goal = figure.get("value", 0), figure.get("interval"), figure.get("goal")
    if interval is not None and isinstance(value, dict) != isinstance(interval, dict):
        found.append("has one interval for several values, or the other way round")
    found += [f"has the value {v!r}, not a finite number" for v in parts(value) if not is_number(v)]
    pairs = [] if interval is None else parts(interval)
    found += [f"has the interval {pair!r}, not [low, high]" for pair in pairs if not is_interval(pair)]
    if goal is not None and not GOAL.fullmatch(goal):
        found.append(f"has the goal {goal!r}; write it as '<= 1.25'")
    return found


def parts(value) -> list:
    return list(value.values()) if isinstance(value, dict) else [value]


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_interval(pair) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(map(is_number, pair)) and pair[0] <= pair[1]
