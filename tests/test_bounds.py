"""Settings beyond their bounds are named in full, wherever they lie; and each bound lets pass what it should."""

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import get_type_hints

import pytest

from agp import bounds
from agp.bounds import Chance, Count, Part, Positive, Seed, Share, Weight, Whole, bound_of, outside
from curricula import recipes


@dataclass(frozen=True)
class Inner:
    shares: tuple[Chance, ...] = (0.5,)
    last: Count | None = None


@dataclass(frozen=True)
class Settings:
    steps: Count = 1
    by_name: dict[str, Whole] = field(default_factory=dict)
    inner: Inner = Inner()


def test_all_that_is_wrong_is_said_by_its_whole_name():
    assert outside(Settings()) == []
    assert outside(Settings(steps=0, by_name={"a": 1, "b": -1}, inner=Inner((0.5, 1.0), 0))) == [
        "steps is 0; 1 or more is needed",
        "by_name is {'a': 1, 'b': -1}; 0 or more is needed",
        "inner.shares is (0.5, 1.0); a share between 0 and 1 is needed",
        "inner.last is 0; 1 or more is needed",
    ]


@pytest.mark.parametrize(
    "kind, inside, beyond",
    [
        (Count, [1, 2**40], [0, -1]),
        (Whole, [0], [-1]),
        (Seed, [0, 2**63 - 1], [-1, 2**63]),
        (Positive, [1e-30], [0, -1, math.inf, math.nan]),
        (Weight, [0, 1], [-1e-9, math.inf, math.nan]),
        (Share, [0, 1], [-0.1, 1.1, math.nan]),
        (Part, [0, 0.99], [1, -0.1, math.nan]),
        (Chance, [0.01], [0, 1, math.nan]),
    ],
)
def test_a_bound_is_where_it_says(kind, inside, beyond):
    holds = bound_of(kind).holds
    assert all(map(holds, inside)) and not any(map(holds, beyond))


def test_names_are_those_that_are_known():
    bound = bounds.one_of((2, 4))
    assert bound.holds(2) and not bound.holds(3) and bound.needed == "one of 2, 4 is needed"


def unbound(config, at=""):
    """Settings that are numbers and have no bound."""
    kinds = get_type_hints(type(config), include_extras=True)
    for one in fields(config):
        if is_dataclass(value := getattr(config, one.name)):
            yield from unbound(value, f"{at}{one.name}.")
        elif bound_of(kinds[one.name]) is None and any(word in str(kinds[one.name]) for word in ("int", "float")):
            yield f"{at}{one.name}"


def test_every_number_of_a_recipe_has_a_bound():
    assert list(unbound(recipes.tiny())) == ["harvest.taps"]  # of those the model has the say
    assert outside(recipes.tiny()) == []
