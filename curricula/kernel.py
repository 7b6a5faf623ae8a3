"""The kernel: concepts by name and type, each with what says where it holds.

Without a file, concepts are what rows say of themselves (`concepts`, by kind: primitive, invariant, bundle). A file
names its own, each labelled by a regex over the text, by what rows say, or by examples. docs/kernel.md is its manual.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agp.models.tensors import shown, some
from agp.text import Tokenizer
from curricula.features import Features
from heads.semantic import TYPES

LARGEST = 1_000_000  # bytes of a kernel
LONGEST = 1_000  # characters of a regex
FEWEST = 4  # examples of a side: half of them say how well the other half tells them apart
SOURCES = {"regex": {"regex", "over"}, "field": {"field", "equals"}, "examples": {"examples"}}
OVER = ("document", "token")


class Concept(NamedTuple):
    name: str
    type: str
    source: str  # one of SOURCES
    given: dict[str, Any]  # what that source needs


class Labels(NamedTuple):
    true: np.ndarray  # N C: whether the concept holds at the position
    known: np.ndarray  # N C: whether anything is said of it there


def from_rows(documents: Sequence[Mapping[str, Any]]) -> list[Concept]:
    """All that rows name, those of one type together."""
    named = {(kind, name) for document in documents for kind, names in document["concepts"].items() for name in names}
    found = sorted((TYPES.index(kind), name) for kind, name in named if kind in TYPES)
    return [Concept(name, TYPES[t], "field", {"field": TYPES[t], "equals": (name,)}) for t, name in found]


def read(path: Path) -> list[Concept]:
    """The concepts of a file, or one error with all that is wrong."""
    if not path.is_file():
        raise ValueError(f"{path} is no file; a kernel is a JSON file, as docs/kernel.md says")
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{path} has {size:,} bytes; a kernel has {LARGEST:,} at most")
    try:
        given = json.loads(path.read_bytes().decode(), object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is no JSON to go by: {e}") from e
    if isinstance(given, dict) and "concepts" in given and (odd := sorted(given.keys() - {"concepts"})):
        raise ValueError(f"{path} has {some(odd)} beside concepts, of which no use is made; leave it out")
    if not isinstance(given, dict) or not isinstance(given.get("concepts"), list):
        raise ValueError(f'{path} is {shown(given)}; {{"concepts": [...]}} is needed')
    if not given["concepts"]:
        raise ValueError(f"{path} names no concept")
    wrong: list[str] = []
    found = [understood(number, one, wrong) for number, one in enumerate(given["concepts"], 1)]
    counts = Counter(
        one["name"] for one in given["concepts"] if isinstance(one, dict) and isinstance(one.get("name"), str)
    )
    wrong += [f"{name}: is named {times} times" for name, times in counts.items() if times > 1]
    if wrong:
        raise ValueError(f"{path}:\n" + "\n".join(wrong))
    return sorted((c for c in found if c is not None), key=lambda concept: TYPES.index(concept.type))


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]:
        raise ValueError(f"{some(twice)} stands twice in one object")
    return dict(pairs)


def understood(number: int, given: Any, wrong: list[str]) -> Concept | None:
    if not isinstance(given, dict) or not isinstance(given.get("name"), str) or not given["name"].strip():
        wrong.append(f"concept {number}: is {shown(given)}; an object with a name, a text, is needed")
        return None
    name, faults = given["name"], []
    if given.get("type") not in TYPES:
        faults.append(f"type is {shown(given.get('type'))}; one of {', '.join(TYPES)} is needed")
    sources = [source for source in SOURCES if source in given]
    if len(sources) != 1:
        faults.append(f"has {' and '.join(sources) or 'nothing'} to label it; one of {', '.join(SOURCES)} is needed")
    else:
        faults += CHECKS[sources[0]](given)
        if odd := sorted(given.keys() - SOURCES[sources[0]] - {"name", "type"}):
            faults.append(f"has {shown(odd)}, which {sources[0]} makes no use of")
    wrong += [f"{name}: {fault}" for fault in faults]
    if faults:
        return None
    more = {key: given[key] for key in SOURCES[sources[0]] if key in given}
    return Concept(name, given["type"], sources[0], settled(sources[0], more))


def settled(source: str, given: dict[str, Any]) -> dict[str, Any]:
    if source == "regex":
        return {"regex": re.compile(given["regex"]), "over": given.get("over", "document")}
    if source == "field":
        return {"field": given["field"], "equals": tuple(texts(given["equals"]))}
    return given


def texts(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def are_texts(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(text, str) and text.strip() for text in given)


def regex_faults(given: Mapping[str, Any]) -> list[str]:
    pattern, faults = given["regex"], []
    if given.get("over", "document") not in OVER:
        faults.append(f"over is {shown(given['over'])}; {' or '.join(OVER)} is needed")
    if not isinstance(pattern, str) or not 0 < len(pattern) <= LONGEST:
        return [*faults, f"regex is {shown(pattern)}; a text of 1 to {LONGEST} characters is needed"]
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as e:
        return [*faults, f"regex does not compile: {e}"]
    return [*faults, "regex matches the empty text, and so any"] if compiled.search("") else faults


def field_faults(given: Mapping[str, Any]) -> list[str]:
    faults = [] if are_texts(texts(given["field"])) and isinstance(given["field"], str) else [
        f"field is {shown(given['field'])}; the kind that rows name under `concepts` is needed"
    ]  # fmt: skip
    if not are_texts(texts(given.get("equals"))):
        faults.append(f"equals is {shown(given.get('equals'))}; a text, or a list of texts, is needed")
    return faults


def examples_faults(given: Mapping[str, Any]) -> list[str]:
    told = given["examples"]
    if not isinstance(told, dict) or told.keys() != {"positive", "negative"}:
        return [f"examples are {shown(told)}; lists positive and negative are needed"]
    return [
        f"{side} examples are {shown(of)}; {FEWEST} texts or more are needed"
        for side, of in told.items()
        if not are_texts(of) or len(of) < FEWEST
    ]


CHECKS = {"regex": regex_faults, "field": field_faults, "examples": examples_faults}


def labels(
    concepts: Sequence[Concept],
    features: Features,
    tokenizer: Tokenizer,
    like: Mapping[str, np.ndarray],
) -> Labels:
    """Of every position. `like` says of concepts with examples which documents are like them."""
    true, known = (np.zeros((features.count, len(concepts)), bool) for _ in range(2))
    for number, concept in enumerate(concepts):
        if concept.source == "field":
            kind, equals = concept.given["field"], set(concept.given["equals"])
            said = [document["concepts"].get(kind, ()) for document in features.documents]
            true[:, number] = np.array([not equals.isdisjoint(names) for names in said])[features.document]
            known[:, number] = np.array([bool(names) for names in said])[features.document]
        elif concept.source == "examples":
            true[:, number], known[:, number] = like[concept.name][features.document], True
    patterns = [number for number, concept in enumerate(concepts) if concept.source == "regex"]
    if patterns:
        for d in range(len(features.begins)):
            matched(concepts, patterns, features, d, tokenizer, true)
        known[:, patterns] = True
    return Labels(true, known)


def matched(
    concepts: Sequence[Concept],
    patterns: Sequence[int],
    features: Features,
    document: int,
    tokenizer: Tokenizer,
    true: np.ndarray,
) -> None:
    """A position's token is the one that is read there, the last before what is foretold."""
    ids, first = features.of(document, "ids").tolist(), features.of(document, "first")
    text, begin = tokenizer.decode(ids), features.begins[document]
    here = slice(begin, begin + len(ids) - first)
    ends: np.ndarray | None = None
    for number in patterns:
        pattern = concepts[number].given["regex"]
        if concepts[number].given["over"] == "document":
            true[here, number] = pattern.search(text) is not None
            continue
        if ends is None:
            ends = np.array([len(tokenizer.decode(ids[:end])) for end in range(first - 1, len(ids))])
        for match in filter(lambda found: found.end() > found.start(), pattern.finditer(text)):  # \b is in no token
            true[here, number] |= (ends[:-1] < match.end()) & (ends[1:] > match.start())
