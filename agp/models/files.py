"""Reading what others wrote: only plain files of a sane size that lie in the folder, all else is a fault to name."""

import json
import os
from pathlib import Path
from typing import Any

from agp.models.tensors import shown

LARGEST = 10_000_000  # bytes of a JSON file or template; Gemma's indexes stay below 1 MB
DEEPEST = 64  # levels in JSON; configs have up to six
FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


def there(file: Path) -> bool:
    """Also for a link that leads nowhere, which is a fault and not an absence."""
    return os.path.lexists(file)


def fault(file: Path) -> str | None:
    """Why a file that is there is not to be opened."""
    if not os.path.exists(file):
        return f"{file.name} is a link to nowhere"
    if outside(file):
        return f"{file.name} points outside the folder"
    return None if file.is_file() else f"{file.name} is no plain file"


def outside(file: Path) -> bool:
    """A link out of the folder; the Hub's cache links to the `blobs` beside its `snapshots`, which is fine."""
    folder, target = file.parent.resolve(), file.resolve().parent
    return target != folder and not (folder.parent.name == "snapshots" and target == folder.parents[1] / "blobs")


def read(file: Path, most: int = LARGEST) -> bytes:
    if not there(file):
        raise ValueError(f"{file.name} is missing from {file.parent}")
    if why := fault(file):
        raise ValueError(why)
    if (size := file.stat().st_size) > most:
        raise ValueError(f"{file.name} has {size} bytes; up to {most} are read")
    try:
        return file.read_bytes()
    except OSError as e:
        raise ValueError(f"{file.name} cannot be read: {e.strerror}") from e


def read_text(file: Path) -> str:
    try:
        return read(file).decode("utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{file.name} is not UTF-8: {e.reason} at byte {e.start}") from e


def read_json(file: Path) -> dict[str, Any]:
    text = read_text(file)
    try:
        value = json.loads(text, object_hook=untag)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{file.name} is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise ValueError(f"{file.name} holds a {type(value).__name__} where an object was due")
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [v for c in level if isinstance(c, dict | list) for v in (c.values() if isinstance(c, dict) else c)]
    if level:
        raise ValueError(f"{file.name} is nested more than {DEEPEST} levels deep")
    return value


def untag(value: dict[str, Any]) -> Any:
    """transformers writes infinity and NaN as {"__float__": "Infinity"}, for they are not JSON."""
    if set(value) != {"__float__"}:
        return value
    tag = value["__float__"]
    if not isinstance(tag, str) or tag not in FLOATS:
        raise ValueError(f"__float__ is {shown(tag)}; one of {', '.join(FLOATS)} is needed")
    return FLOATS[tag]
