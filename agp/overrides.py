"""Settings from a TOML file and from `name=value`, checked against the dataclass that has them."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from agp.models.tensors import shown

C = TypeVar("C")
WORDS = {"true": True, "false": False, "none": None}


def override(config: C, pairs: Iterable[str]) -> C:
    """A changed copy: `override(config, ["fit.steps=10"])`. All that is wrong is one error."""
    wrong: list[str] = []
    for pair in pairs:
        name, equals, given = pair.partition("=")
        if not equals:
            wrong.append(f"{shown(pair)} is no name=value")
            continue
        value: Any = given
        for part in reversed(name.split(".")):
            value = {part: value}
        config = changes(config, value, "", wrong)
    return sound(config, wrong)


def from_file(config: C, path: Path | str) -> C:
    try:
        given = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else e
        raise ValueError(f"{path} is no TOML file that can be read: {why}") from e
    wrong: list[str] = []
    return sound(changes(config, given, "", wrong), wrong)


def sound(config: C, wrong: list[str]) -> C:
    if wrong:
        raise ValueError("; ".join(wrong))
    return config


def unknown(config: Any, at: str, name: str) -> str:
    """`config` has no setting `name`: one below it that is called so is meant, or the nearest."""
    below = all_names(config)
    meant = [full for full in below if full.rpartition(".")[2] == name] or get_close_matches(name, below, 1, 0.7)
    told = f"did you mean {' or '.join(at + full for full in meant)}? " if meant else ""
    there = ", ".join(field.name for field in fields(config))
    return f"no setting {at}{name}; {told}{at.rstrip('.') or 'it'} has {there}"


def all_names(config: Any, at: str = "") -> list[str]:
    found = [(f"{at}{field.name}", getattr(config, field.name)) for field in fields(config)]
    return [name for full, value in found for name in (all_names(value, f"{full}.") if is_dataclass(value) else [full])]


def changes(config: Any, given: Mapping[str, Any], at: str, wrong: list[str]) -> Any:
    kinds, new = get_type_hints(type(config)), {}
    for name, value in given.items():
        if name not in kinds:
            wrong.append(unknown(config, at, name))
            continue
        old = getattr(config, name)
        if is_dataclass(old) and isinstance(value, Mapping):
            new[name] = changes(old, value, f"{at}{name}.", wrong)
            continue
        try:
            fresh = understood(kinds[name], value)
            new[name] = {**old, **fresh} if isinstance(old, dict) else fresh
        except (ValueError, TypeError):
            wrong.append(f"{at}{name} is {shown(value)}; {described(kinds[name], at + name)} is needed")
    return replace(config, **new)


def understood(kind: Any, value: Any) -> Any:
    """A value of a type, from TOML or from text."""
    if get_origin(kind) in (Union, UnionType):
        return first_fit(get_args(kind), value)
    if isinstance(value, str) and kind in (bool, type(None)):
        value = WORDS[value.lower()] if value.lower() in WORDS else value
    if isinstance(value, str) and kind in (int, float):
        value = kind(value)
    if kind is float and type(value) is int:
        value = float(value)
    if get_origin(kind) is tuple:
        given = value.strip("[]() ").split(",") if isinstance(value, str) else value
        if not isinstance(given, list | tuple):
            raise ValueError
        return tuple(understood(get_args(kind)[0], item) for item in given)
    if get_origin(kind) is dict:
        key, item = get_args(kind)
        if not isinstance(value, Mapping):
            raise ValueError
        return {understood(key, k): understood(item, v) for k, v in value.items()}
    if type(value) is not (kind if kind is not None else type(None)):
        raise ValueError
    return value


def first_fit(kinds: Iterable[Any], value: Any) -> Any:
    for kind in sorted(kinds, key=lambda k: k is str):  # anything is text
        try:
            return understood(kind, value)
        except ValueError:
            continue
    raise ValueError


def described(kind: Any, name: str) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(described(k, name) for k in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list such as 4,6,8, each {described(get_args(kind)[0], name)},"
    if get_origin(kind) is dict:
        inner = get_args(kind)[1]
        return described(inner, f"{name}.NAME") if get_origin(inner) is dict else f"{name}.NAME=value"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    return names.get(kind, "an object by name")
