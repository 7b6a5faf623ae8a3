"""An export on disk: what lies where, and whether its parts are the ones that belong together."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from agp.artifacts import digest
from agp.models.tensors import shown
from export import blob, coreml

PACKAGE, SAMPLE, MANIFEST = "heads.mlpackage", "sample.safetensors", "manifest.json"
CARD, VERIFICATION = "card.md", "verification.json"
KNOWN = {"content", "sample", "weights", "decisions", "inputs", "outputs", "ties", "room", "stages", "documents"}
LARGEST = 1 << 26  # bytes of a manifest


class Check(NamedTuple):
    name: str
    told: str
    passed: bool


def manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} holds no {MANIFEST}; `agp export RUN` makes such a folder")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a manifest has {LARGEST:,} at most")
    try:
        found = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as e:
        raise ValueError(f"{path} cannot be read: {shown(str(e))}") from e
    if absent := sorted(KNOWN - found.keys()):
        raise ValueError(f"{path} says nothing of {', '.join(absent)}; export the run again")
    return found


def checks(folder: Path, given: dict[str, Any]) -> list[Check]:
    """Digests, and every weight in the file among those that were described."""
    found = [
        same("content", coreml.content(folder / PACKAGE), given["content"]),
        same("sample", digest(folder / SAMPLE), given["sample"]),
    ]
    there = blob.blobs(folder / PACKAGE)
    odd = [f"{of.bytes:,} bytes at {of.offset:,}" for of in there if of.sha256 not in set(given["weights"])]
    told = f"{len(there) - len(odd):,} of {len(there):,} weights are as they were described"
    return [*found, Check("weights", f"{told}{': not ' + odd[0] if odd else ''}", not odd)]


def same(name: str, found: str, known: str) -> Check:
    if found == known:
        return Check(name, f"digest {found[:12]}", True)
    return Check(name, f"its digest is {found[:12]}, and the manifest says {str(known)[:12]}", False)
