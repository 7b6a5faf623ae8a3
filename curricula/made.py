"""Rows that need no data of anyone's: the twelve families, shifted for those who adapt to them, and committed source.

Conversation, code and memory are families whose shifted items have other wordings, other words and longer instances;
`source` is text of the standard library, of packages that nothing was trained on, and of held-out ones.
"""

import hashlib
from collections.abc import Mapping
from itertools import islice

from curricula.families import FAMILIES, Item, items
from curricula.source import committed

CODE = ("json_schema", "code_syntax", "code_semantics", "dead_code", "variable_renaming")
MEMORY = ("factual_recall",)
SHIFTED = {"train": 45, "valid": 8, "heads": 20, "tune": 5, "calibrate": 11, "test": 11}  # percent of the characters
HELD_OUT = {"heads": 55, "tune": 9, "calibrate": 18, "test": 18}

PIECE = 360  # characters of a row of text

SOURCES = ("conversation", "code", "memory", "source")

Rows = dict[str, dict[str, list[dict]]]  # by source and role, as they stand in JSONL


def source_of(family: str) -> str:
    return "code" if family in CODE else "memory" if family in MEMORY else "conversation"


def row(item: Item) -> dict:
    """With the truth about it: what operation it asks for, which invariants hold, and the bundle they make."""
    invariants = [f"{item.operation}.{name}" for name in item.invariants]
    concepts = {"primitive": f"{item.family}.{item.operation}", "invariant": invariants, "bundle": item.bundle}
    named = f"{item.family}/{item.split}/{item.index}"
    return {"prompt": item.prompt, "completion": item.answer, "document": named, "concepts": concepts}


def shifted(counts: Mapping[str, int], most: int | None = None) -> Rows:
    """So many items of each family for each role, and `most` pieces of text at most; no content twice."""
    found: Rows = {}
    for family in FAMILIES:
        drawn = items(family, "shift")
        for role, count in counts.items():
            of_role = found.setdefault(source_of(family), {}).setdefault(role, [])
            of_role += [row(item) for item in islice(drawn, count)]
    texts = {role: [] for role in counts}
    for kind, shares in (("shift", SHIFTED), ("heldout", HELD_OUT)):
        for role, modules in dealt(committed(kind), shares).items():
            texts[role] += [{"text": t, "document": name} for name, text in modules.items() for t in pieces(text)]
    return found | {"source": {role: rows[:most] for role, rows in texts.items()}}


def general(counts: Mapping[str, int]) -> Rows:
    """What the model could do before: plain items, to be kept and to be measured on."""
    splits = {"train": "pretrain", "valid": "tune", "test": "test"}
    return {
        "general": {
            role: [row(item) for family in FAMILIES for item in islice(items(family, splits[role]), count)]
            for role, count in counts.items()
        }
    }


def pieces(text: str) -> list[str]:
    """Whole lines, so many that they fill a row."""
    found, held = [], ""
    for line in text.splitlines(keepends=True):
        if held and len(held) + len(line) > PIECE:
            found.append(held)
            held = ""
        held += line
    return [piece for piece in (*found, held) if piece.strip()]


def dealt(texts: Mapping[str, str], shares: Mapping[str, int]) -> dict[str, dict[str, str]]:
    """Whole texts, each to the role that is furthest below its share."""
    parts: dict[str, dict[str, str]] = {role: {} for role in shares}
    sizes = dict.fromkeys(shares, 0)
    for name in sorted(texts, key=lambda name: (-len(texts[name]), hashlib.sha256(name.encode()).hexdigest())):
        role = min(shares, key=lambda role: (sizes[role] + len(texts[name])) / shares[role])
        parts[role][name] = texts[name]
        sizes[role] += len(texts[name])
    return parts
