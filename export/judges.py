"""Who says what a package should say, each by means of its own: numpy in two arithmetics, and Apple's runtime."""

from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from export import device, evaluate, inference, lint
from export.decisions import TIES
from export.folder import ASSET, PACKAGE, Check
from export.ops import Entry, Plain
from export.program import UNITS
from export.ranges import MOST, Seen
from export.sample import Part
from export.verify import DEVICE, Run, Verdict, compare


def by_description(entries: Mapping[str, Entry]) -> Run:
    return lambda entry, feed: entries[entry].describe(Plain(), feed)


def by_package(program: Any, pair: str, seen: Seen) -> Run:
    """What is computed exactly is watched for its size."""
    if pair == "exact":
        return lambda entry, feed: seen.run(program, entry, feed)
    return lambda entry, feed: evaluate.run(program, entry, feed, exact=False)


def saved(
    folder: Path, program: Any, parts: Mapping[str, Part], rules: Mapping[str, Any], seen: Seen, asset: bool
) -> Iterator[Verdict]:
    """Of all that lies in an export: the package's program, as it was read back, and the asset where there is one."""
    for pair in ("exact", "half"):
        yield compare(pair, by_package(program, pair, seen), parts, rules)
    if asset:
        from export.asset import opened

        with opened(folder / ASSET) as run:
            yield compare("coreai", run, parts, rules)
    if device.HERE:
        yield from on_device(folder, parts, rules, device.Mac())


def on_device(folder: Path, parts: Mapping[str, Part], rules: Mapping[str, Any], machine: Any) -> Iterator[Verdict]:
    """What this Mac predicts, on each of its compute units."""
    with TemporaryDirectory() as home:
        compiled = machine.compile(folder / PACKAGE, Path(home))
        for unit in DEVICE:
            ready = cache(partial(machine.open, compiled, unit=unit))
            yield compare(unit, lambda entry, feed, ready=ready: ready(entry)(feed), parts, rules)


def stated(given: Mapping[str, Any], program: Any) -> Check:
    """What a manifest says of the program, and the widths of ties, which are no export's own."""
    entries = program.functions.items()
    sizes = {name: {of: [var.shape[1], var.shape[3]] for of, var in entry.inputs.items()} for name, entry in entries}
    wide = {name: {of.name: of.shape[1] for of in entry.outputs} for name, entry in entries}
    known = {"inputs": sizes, "outputs": wide, "ties": TIES, "units": UNITS}
    odd = [name for name, of in known.items() if given[name] != of]
    told = (
        f"says other {' and '.join(odd)} than there are"
        if odd
        else "says the inputs, outputs, ties and units there are"
    )
    return Check("manifest", told, not odd)


def checks(program: Any, parts: Mapping[str, Part], inputs: Mapping[str, Any], seen: Seen) -> list[Check]:
    """Of the package, beside what it says of the sample; `seen` watched that."""
    wrong = [of for of in lint.lint(program) if of.fails]
    told = (
        f"{wrong[0].rule}: {wrong[0].entry}: {wrong[0].what}"
        if wrong
        else "nothing would keep it off, of what is known"
    )
    return [
        inference.checked(program, parts),
        zeros(program, inputs),
        ranges(seen),
        Check("lint", told, not wrong),
    ]


def zeros(program: Any, inputs: Mapping[str, Mapping[str, list[int]]]) -> Check:
    """What is said of nothing at all is a number."""
    odd = []
    for entry, sizes in inputs.items():
        feed = {name: np.zeros((1, channels, 1, count)) for name, (channels, count) in sizes.items()}
        found = evaluate.run(program, entry, feed, exact=False)
        odd += [f"{entry} {name}" for name, x in found.items() if not np.isfinite(x).all()]
    told = f"of rows of zeros {', '.join(odd[:3])} is no number" if odd else "of rows of zeros all is finite"
    return Check("zeros", told, not odd)


def ranges(seen: Seen) -> Check:
    name = max(seen.largest, key=lambda of: seen.largest[of])
    told = "; ".join(seen.refused()) or f"the largest is {seen.largest[name]:,.0f}, {name}"
    return Check("ranges", f"{told}, where {MOST:,.0f} is safe", not seen.refused())
