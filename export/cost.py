"""What it costs to keep large weights in fewer bits: bytes, decibels of each output, and decisions that turn.

A cost is told, not judged: whether it is worth its bytes is for whoever ships it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export import blob, coreml, evaluate, folder, verify
from export.compress import Smaller
from export.folder import Check
from export.ops import Entry
from export.sample import Part

SAME = 0.05  # decibels: other machines add in another order


def made(
    out: Path, entries: Mapping[str, Entry], smaller: Smaller, parts: Mapping[str, Part], rules: Mapping[str, Any]
) -> dict[str, Any]:
    """Another package beside the one of half precision, and all that the manifest says of it."""
    package = out / folder.smaller(smaller.kind)
    weights = coreml.save(package, entries, "one", smaller)
    about = {"from_bytes": smaller.least, "content": coreml.content(package), "weights": sorted(weights)}
    return about | asked(package, parts, rules)


def asked(package: Path, parts: Mapping[str, Part], rules: Mapping[str, Any]) -> dict[str, Any]:
    program = evaluate.load(package)
    run: verify.Run = lambda entry, feed: evaluate.run(program, entry, feed, exact=False)
    outputs, _, changes = verify.measured(run, parts, rules)
    if odd := [f"{of.entry} {of.name}" for of in outputs if not np.isfinite(of.error)]:
        raise ValueError(f"{package.name} says no number: {', '.join(odd)}")
    return {
        "bytes": sum(of.bytes for of in blob.blobs(package)),
        "psnr": {
            f"{of.entry} {of.name}": round(of.psnr, 2) for of in sorted(outputs, key=lambda of: of.psnr) if of.positions
        },
        "decisions": {name: of._asdict() for name, of in changes.items() if of.changed},
        "asked": sum(of.decisions for of in changes.values()),
    }


def checked(where: Path, given: Mapping[str, Any], parts: Mapping[str, Part], kind: str) -> Check:
    """That it is the one which was measured, and still costs that."""
    package, known = where / folder.smaller(kind), given["smaller"][kind]
    if (content := coreml.content(package)) != known["content"]:
        return folder.same(kind, content, known["content"])
    if odd := [of for of in blob.blobs(package) if of.sha256 not in set(known["weights"])]:
        return Check(kind, f"holds {len(odd)} weights that were not described", False)
    found = asked(package, parts, given["decisions"])
    apart = max(abs(known["psnr"][name] - psnr) for name, psnr in found["psnr"].items())
    return Check(kind, f"{told(found)}; as measured to {apart:.2f} dB", apart <= SAME)


def told(cost: Mapping[str, Any]) -> str:
    name, least = min(cost["psnr"].items(), key=lambda of: of[1])
    turned = sum(of["changed"] for of in cost["decisions"].values())
    size = f"{cost['bytes'] / 1e6:.1f} MB of weights"
    return f"{size}; the worst output, {name}, has {least:.1f} dB; {turned:,} of {cost['asked']:,} decisions turn"
