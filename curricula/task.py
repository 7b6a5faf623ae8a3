"""What one task family must say: how to draw an instance, write it with its answer, and disturb it a little."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Case:
    """An instance before it is worded: `body` is all of the prompt that does not depend on the wording."""

    body: str
    answer: str
    operation: str
    invariants: tuple[str, ...]  # the first is the primary one and names the bundle


@dataclass(frozen=True)
class Task:
    draw: Callable[[Random, bool], Any]  # (rng, shifted) -> state
    render: Callable[[Any], Case]  # the only place where truth is computed, for the item and for its twin
    disturb: Callable[[Random, Any, bool], Any]  # a state one small step away
    asks: dict[str, str]  # operation -> one English sentence
    wordings: dict[str, tuple[str, ...]]  # operation -> templates holding {body}
    shifted: dict[str, tuple[str, ...]]  # the reserved wordings
