"""What a setting may be: its type is annotated with a bound, and all that lie outside are named at once."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from math import inf
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints


class Bound(NamedTuple):
    holds: Callable[[Any], bool]
    needed: str


def one_of(names: Iterable[Any]) -> Bound:
    known = tuple(names)
    return Bound(lambda value: value in known, f"one of {', '.join(map(str, known))} is needed")


Count = Annotated[int, Bound(lambda x: x >= 1, "1 or more is needed")]
Whole = Annotated[int, Bound(lambda x: x >= 0, "0 or more is needed")]
Seed = Annotated[int, Bound(lambda x: 0 <= x < 2**63, "a whole number from 0 to below 2**63 is needed")]
Positive = Annotated[float, Bound(lambda x: 0 < x < inf, "a number above 0 is needed")]
Weight = Annotated[float, Bound(lambda x: 0 <= x < inf, "0 or more is needed")]
Share = Annotated[float, Bound(lambda x: 0 <= x <= 1, "a share from 0 to 1 is needed")]
Part = Annotated[float, Bound(lambda x: 0 <= x < 1, "a share from 0 to below 1 is needed")]
Chance = Annotated[float, Bound(lambda x: 0 < x < 1, "a share between 0 and 1 is needed")]


def outside(config: Any, at: str = "") -> list[str]:
    """Of a dataclass and those in it: every setting that is beyond its bound, by its whole name."""
    kinds, wrong = get_type_hints(type(config), include_extras=True), []
    for field in fields(config):
        name, value = f"{at}{field.name}", getattr(config, field.name)
        if is_dataclass(value):
            wrong += outside(value, f"{name}.")
        elif (bound := bound_of(kinds[field.name])) and not all(map(bound.holds, held(value))):
            wrong.append(f"{name} is {value!r}; {bound.needed}")
    return wrong


def held(value: Any) -> list:
    """All that is bound alike."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, tuple | list) else [] if value is None else [value]


def bound_of(kind: Any) -> Bound | None:
    """Of a type, or of what it holds."""
    if get_origin(kind) is Annotated:
        return kind.__metadata__[0]
    return next((found for inner in get_args(kind) if (found := bound_of(inner))), None)
