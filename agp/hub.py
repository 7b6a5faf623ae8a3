"""Data sets of the Hub by name, `owner/name` or `owner/name:subset`: their rows under the names that AGP knows."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from agp.models.tensors import shown, some

NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
SPLITS = {"train": "train", "validation": "valid", "valid": "valid", "test": "test"}  # theirs, and ours
INSTALL = "pip install 'agp[hub]', or from a clone: pip install -e '.[hub]'"


def fetch(name: str, known: set[str], columns: Mapping[str, str]) -> tuple[dict[str, Iterator[dict]], list[str]]:
    """Rows of each split, of the columns AGP knows; `columns` says how the data set calls them."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as e:
        raise ValueError(f"{name} is no folder here; to read it from the Hub: {INSTALL}") from e
    owner, _, subset = name.partition(":")
    try:
        found = datasets.load_dataset(owner, subset or None)
    except (OSError, ValueError, DatasetsError) as e:
        raise ValueError(f"there is no folder {name} here, and the Hub does not give it: {e}") from e
    if "train" not in found:
        raise ValueError(f"{name} has the splits {some(map(str, found))}; one called train is needed")
    theirs = found["train"].column_names
    if lacking := sorted(set(columns.values()) - set(theirs)):
        raise ValueError(f"{name} has no column {some(lacking)}; it has {some(theirs)}")
    names = {ours: columns.get(ours, ours) for ours in sorted(known) if columns.get(ours, ours) in theirs}
    if not names:
        raise ValueError(
            f"{name} has the columns {shown(theirs)}; name those to learn from, such as columns.text={theirs[0]}"
        )
    left = sorted(set(theirs) - set(names.values()))
    notes = [f"columns left out: {some(left)}"] if left else []
    splits = {SPLITS[str(split)]: rows for split, rows in found.items() if str(split) in SPLITS}
    return {split: renamed(rows, names) for split, rows in splits.items()}, notes


def renamed(rows: Any, names: Mapping[str, str]) -> Iterator[dict]:
    for row in rows.select_columns(list(names.values())):
        yield {ours: filled(row[theirs]) for ours, theirs in names.items() if row[theirs] is not None}


def filled(value: Any) -> Any:
    """Tables give every turn the keys of all turns, with nothing in them."""
    if isinstance(value, list):
        return [filled(part) for part in value]
    return {k: filled(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value
