"""The rows stage: all text that a run learns from or is measured on, divided by document before anything is trained.

Six roles: `train` and `valid` are the domain adapter's, `heads` is what all heads learn from, `tune` decides when they
stop and where labels begin, `calibrate` chooses thresholds, and `test` is measured once. Without data of your own, rows
are made.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agp import data
from agp.artifacts import write_bytes
from agp.bounds import Count, Whole
from agp.models.tensors import some
from curricula.made import SOURCES, general, shifted

ROLES = ("train", "valid", "heads", "tune", "calibrate", "test")
SHARES = {"train": 35, "valid": 5, "heads": 25, "tune": 5, "calibrate": 15, "test": 15}  # percent of the documents
GENERAL = "general"  # a source that nobody adapts to


@dataclass(frozen=True, kw_only=True)
class Config:
    data: dict[str, str] = field(default_factory=dict)  # folders or data sets of the Hub, by name; none: rows are made
    columns: dict[str, str] = field(default_factory=dict)
    shares: dict[str, Whole] = field(default_factory=lambda: dict(SHARES))  # of your documents, where no file says it
    made: dict[str, Whole] = field(default_factory=dict)  # rows of each family for each role
    pieces: Count | None = None  # of made text for each role at most
    general: dict[str, Whole] = field(default_factory=lambda: {"test": 20})  # likewise, of what it could do before


def given(config: Config) -> dict[str, Any]:
    """Digests of what lies outside the run."""
    return {name: data.read(where, name, config.columns).digest for name, where in config.data.items()}


def run(config: Config, needs: Mapping[str, Path], out: Path, group: Any) -> dict[str, Any]:
    for source, roles in (found := divided(config)).items():
        for role, rows in roles.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_bytes(out / source / f"{role}.jsonl", lines.encode())
    counts = {source: {role: len(rows) for role, rows in roles.items()} for source, roles in found.items()}
    theirs = [roles for source, roles in counts.items() if source != GENERAL]
    return {"rows": counts} | {role: sum(roles.get(role, 0) for roles in theirs) for role in ROLES}


def divided(config: Config) -> dict[str, dict[str, list[dict]]]:
    """By source and role, as they are written."""
    found = {name: carved(data.read(where, name, config.columns), config.shares) for name, where in config.data.items()}
    return (found or shifted(config.made, config.pieces)) | general(config.general)


def faults(config: Config) -> list[str]:
    wrong = []
    if config.data and config.made:
        wrong.append("data and made are both given: rows are read or made, not both")
    if config.columns and not config.data:
        wrong.append("columns are of data sets of the Hub, and there is no data; leave them out")
    for name in ("shares", "made", "general"):
        given = getattr(config, name)
        if strange := sorted(given.keys() - set(ROLES)):
            wrong.append(f"{name} names {', '.join(strange)}; the roles are {', '.join(ROLES)}")
    if GENERAL in config.data:
        wrong.append(f"data names a source {GENERAL}, and that one is made: give yours another name")
    if sum(config.shares.values()) != 100:
        told = ", ".join(f"{role} {share}" for role, share in config.shares.items())
        wrong.append(f"shares add up to {sum(config.shares.values())} ({told}); percents that make 100 are needed")
    return wrong


def sources(config: Config) -> list[str]:
    """Of what the adapter learns from."""
    return [*(config.data or SOURCES), *([GENERAL] if config.general.get("train") else [])]


def carved(source: data.Source, shares: Mapping[str, int]) -> dict[str, list[dict]]:
    """By a hash of the document; a valid.jsonl or test.jsonl of the user's keeps its role. No content twice."""
    roles: dict[str, list[dict]] = {role: [] for role in ROLES}
    seen: set[str] = set()
    for split in ("test", "valid", "train"):
        for row in source.splits.get(split, []):
            if row.digest not in seen:
                seen.add(row.digest)
                roles[role_of(row.document, shares) if split == "train" else split].append(written(row))
    if empty := [role for role, rows in roles.items() if not rows]:
        raise ValueError(
            f"{source.name} has too few documents: none fell to {some(empty)}. Every role needs some; give more rows,"
            " or other shares (rows.shares.test=20)"
        )
    return roles


def role_of(document: str, shares: Mapping[str, int]) -> str:
    at = int.from_bytes(hashlib.sha256(f"role {document}".encode()).digest()[:8], "big") % 100
    for role, share in shares.items():
        if at < share:
            return role
        at -= share
    raise AssertionError("shares make 100")


def written(row: data.Row) -> dict[str, Any]:
    """As it would stand in JSONL, its notes already where they are read."""
    if row.layout == "prompt":
        what: dict[str, Any] = dict(zip(("prompt", "completion"), (m["content"] for m in row.messages), strict=True))
    else:
        what = {"text": row.text} if row.layout == "text" else {"messages": list(row.messages)}
    concepts = {name: list(values) for name, values in row.concepts.items()}
    return what | {"document": row.document} | ({"concepts": concepts} if concepts else {})


def understood(config: Config) -> dict[str, dict[str, list[data.Row]]]:
    """By role and source, as `read` would find them, without a folder."""
    found: dict[str, dict[str, list[data.Row]]] = {role: {} for role in ROLES}
    for source, roles in divided(config).items():
        for role, given in roles.items():
            found[role][source] = parsed((f"{source}:{n}", lambda row=row: row) for n, row in enumerate(given))
    return found


def read(folder: Path, role: str) -> dict[str, list[data.Row]]:
    """The rows of a role, by source."""
    return {file.parent.name: parsed(data.lines(file)) for file in sorted(folder.glob(f"*/{role}.jsonl"))}


def parsed(given: data.Given) -> list[data.Row]:
    wrong: list[str] = []
    found = list(data.rows(given, wrong))
    assert not wrong, wrong  # it was checked when it was written
    return found
