"""An export on disk: what lies where, and whether its parts are the ones that belong together."""

import json
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from agp.artifacts import digest, write_json
from agp.models.tensors import shown
from export import blob, coreml

PACKAGE, ASSET, SAMPLE, MANIFEST = "heads.mlpackage", "heads.aimodel", "sample.safetensors", "manifest.json"
CARD, VERIFICATION = "card.md", "verification.json"
AUTHORED = ("main.mlirb", "main.hash")
LAYOUT = 1  # of what a manifest says
CORE_AI = find_spec("coreai") is not None
WITHOUT = "coreai-core is not installed; where it can be, `pip install 'agp[coreai]'` does so"
LARGEST = 1 << 26  # bytes of a manifest


def smaller(kind: str) -> str:
    """The package whose large weights are in fewer bits."""
    return f"heads-{kind}.mlpackage"


class Check(NamedTuple):
    name: str
    told: str
    passed: bool


def write(folder: Path, told: dict[str, Any]) -> None:
    told = json.loads(json.dumps(told | {"layout": LAYOUT}))
    write_json(folder / MANIFEST, told | {"digest": digest_of(told)})


def digest_of(told: dict[str, Any]) -> str:
    """Of all but itself, and when it was made."""
    body = {name: value for name, value in told.items() if name not in ("digest", "made")}
    return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


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
    if found.get("layout") != LAYOUT:
        raise ValueError(f"{path} is of layout {found.get('layout')!r}; {LAYOUT} is known here: export the run again")
    if (sound := digest_of(found)) != found.get("digest"):
        known = shown(str(found.get("digest")))[:12]
        raise ValueError(f"{path} was changed: its digest is {sound[:12]} and it says {known}; export the run again")
    if absent := [part for part in parts(found) if not (folder / part).is_file()]:
        raise ValueError(f"{folder} has no {absent[0]}; export the run again")
    return found


def parts(told: dict[str, Any]) -> list[Path]:
    """Files without which nothing can be said of an export."""
    packages = [PACKAGE, *map(smaller, told["smaller"])]
    found = [Path(package) / file for package in packages for file in (coreml.MODEL, blob.WEIGHTS)]
    return [*found, Path(SAMPLE), *(Path(ASSET) / file for file in AUTHORED if told["asset"] is not None)]


def checks(folder: Path, given: dict[str, Any]) -> list[Check]:
    """Digests, and every weight in the file among those that were described."""
    found = [
        same("package", coreml.content(folder / PACKAGE), given["content"]),
        authored(folder / ASSET, given["asset"]),
        same("sample", digest(folder / SAMPLE), given["sample"]),
    ]
    there = blob.blobs(folder / PACKAGE)
    odd = [f"{of.bytes:,} bytes at {of.offset:,}" for of in there if of.sha256 not in set(given["weights"])]
    told = f"{len(there) - len(odd):,} of {len(there):,} weights are as they were described"
    return [*found, Check("weights", f"{told}{': not ' + odd[0] if odd else ''}", not odd)]


def authored(place: Path, known: str | None) -> Check:
    if known is None:
        return Check("asset", "none was made, for coreai-core was not there", not place.exists())
    if not CORE_AI:
        return Check("asset", f"is left out: {WITHOUT}", True)
    from export import asset

    if not asset.whole(place):
        return Check("asset", f"{asset.PROGRAM} has not the bytes that {asset.HASH} tells of", False)
    return same("asset", asset.content(place), known)


def same(name: str, found: str, known: str) -> Check:
    if found == known:
        return Check(name, f"digest {found[:12]}", True)
    return Check(name, f"its digest is {found[:12]}, and the manifest says {str(known)[:12]}", False)
