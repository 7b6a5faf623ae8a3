"""Who says what a package should say, each by means of its own: numpy in two arithmetics, and Apple's runtime."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from export import evaluate
from export.folder import ASSET, CORE_AI, PACKAGE
from export.ops import Entry, Plain
from export.ranges import Seen
from export.sample import Part
from export.verify import Run, Verdict, compare


def by_description(entries: Mapping[str, Entry]) -> Run:
    return lambda entry, feed: entries[entry].describe(Plain(), feed)


def by_package(program: Any, pair: str, seen: Seen) -> Run:
    """What is computed exactly is watched for its size."""
    if pair == "exact":
        return lambda entry, feed: seen.run(program, entry, feed)
    return lambda entry, feed: evaluate.run(program, entry, feed, exact=False)


def saved(folder: Path, parts: Mapping[str, Part], rules: Mapping[str, Any], seen: Seen) -> Iterator[Verdict]:
    """Of all that lies in an export, as it is read back."""
    program = evaluate.load(folder / PACKAGE)
    for pair in ("exact", "half"):
        yield compare(pair, by_package(program, pair, seen), parts, rules)
    if CORE_AI and (folder / ASSET).exists():
        from export import asset

        if asset.whole(folder / ASSET):
            with asset.opened(folder / ASSET) as run:
                yield compare("coreai", run, parts, rules)
