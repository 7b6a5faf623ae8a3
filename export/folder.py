"""An export on disk: what lies where, and whether its parts are the ones that belong together."""

import json
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from agp.artifacts import digest, write_json
from agp.models.tensors import clean, shown, some
from export import blob, coreml

PACKAGE, ASSET, SAMPLE, MANIFEST = "heads.mlpackage", "heads.aimodel", "sample.safetensors", "manifest.json"
CARD, VERIFICATION = "card.md", "verification.json"
AUTHORED = ("main.mlirb", "main.hash")
LAYOUT = 2  # of what a manifest says
MEND = "copy the folder again, or export the run again"
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
    """Last of all: it holds the digest of every other file."""
    there = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    files = {path.relative_to(folder).as_posix(): digest(path) for path in there}
    told = json.loads(json.dumps(told | {"layout": LAYOUT, "files": files}))
    write_json(folder / MANIFEST, told | {"digest": digest_of(told)})


def digest_of(told: dict[str, Any]) -> str:
    """Of all but itself."""
    body = {name: value for name, value in told.items() if name != "digest"}
    return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is {'a file' if folder.exists() else 'not there'}; the folder of an export is needed"
        )
    if not path.is_file():
        raise ValueError(f"{folder} holds no {MANIFEST}; `agp export RUN` makes such a folder")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a manifest has {LARGEST:,} at most")
    try:
        found = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as e:
        raise ValueError(f"{path} cannot be read: {shown(str(e))}; {MEND}") from e
    if found.get("layout") != LAYOUT:
        raise ValueError(f"{path} is of layout {found.get('layout')!r}; {LAYOUT} is known here: export the run again")
    if (sound := digest_of(found)) != found.get("digest"):
        known = clean(str(found.get("digest")))[:12]
        raise ValueError(f"{path} was changed: its digest is {sound[:12]} and it says {known}; {MEND}")
    return found


def whole(folder: Path) -> dict[str, Any]:
    """The manifest of an export none of whose files is absent or another."""
    found = manifest(folder)
    if not (of := files(folder, found)).passed:
        raise ValueError(f"{folder} is damaged: {of.told}; {MEND}")
    return found


def files(folder: Path, given: dict[str, Any]) -> Check:
    """That they are those which the manifest was written with; what lies beside them is not asked after."""
    wrong = []
    for name, known in given["files"].items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            wrong.append(f"{clean(name)} lies elsewhere")
        elif not (folder / name).is_file():
            wrong.append(f"{name} is missing")
        elif digest(folder / name) != known:
            wrong.append(f"{name} has other bytes than were written")
    told = some(wrong) if wrong else f"all {len(given['files'])} are as they were written"
    return Check("files", told, not wrong)


def checks(folder: Path, given: dict[str, Any]) -> list[Check]:
    """Of what the files say: digests, and every weight among those that were described."""
    found = [
        same("package", coreml.content(folder / PACKAGE), given["content"]),
        authored(folder / ASSET, given["asset"]),
        same("sample", digest(folder / SAMPLE), given["sample"]),
    ]
    there = blob.blobs(folder / PACKAGE)
    odd = [f"{of.bytes:,} bytes at {of.offset:,}" for of in there if of.sha256 not in set(given["weights"])]
    told = f"{len(there) - len(odd):,} of {len(there):,} weights are as they were described"
    return [*found, Check("weights", f"{told}{': not ' + odd[0] if odd else ''}", not odd)]


def gates(given: dict[str, Any]) -> Check:
    """A run may be exported past its gates: that is said, and is no fault of the export."""
    why = given["past_gates"]
    return Check(
        "gates", "the run passed them all" if why is None else f"not all passed; exported because: {why}", True
    )


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


def close(name: str, known: dict[str, float], found: dict[str, float]) -> Check:
    """Sizes that were measured again: other machines add in another order, and hardly differ."""
    odd = [of for of in sorted(known.keys() | found.keys()) if not near(known.get(of), found.get(of))]
    told = (
        f"{odd[0]}: {found.get(odd[0])}, and the manifest says {known.get(odd[0])}" if odd else "as the manifest says"
    )
    return Check(name, told, not odd)


def near(known: float | None, found: float | None) -> bool:
    return known is not None and found is not None and abs(known - found) <= 1e-3 * (1 + found)
