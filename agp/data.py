"""Training data as people have it: folders of JSONL in three layouts, every row checked before anything is trained.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"prompt": "...", "completion": "..."}
    {"text": "..."}

or data sets of the Hub by name. Rows may say besides to which `document` they belong, which `concepts` hold of them
({"task": "refund", "about": ["price", "delay"]}), and conversations which `notes` their answers rest on.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from agp import hub
from agp.models.tensors import shown

SPLITS = ("train", "valid", "test")
LAYOUTS = {"messages": {"messages"}, "prompt": {"prompt", "completion"}, "text": {"text"}}
MORE = {"document", "notes", "concepts"}
ROLES = ("system", "developer", "user", "assistant", "tool")
HELD_OUT = 5  # percent of the documents, where no valid.jsonl says which
LONGEST = 4_000_000  # characters of a row
SHOWN = 12


class Row(NamedTuple):
    place: str  # file and line
    layout: str
    messages: tuple[dict[str, Any], ...]  # of a conversation, or of a prompt and its completion
    text: str  # of the third layout
    document: str  # rows of one document never lie on both sides of a split
    digest: str  # of what it says
    concepts: dict[str, tuple[str, ...]] = {}  # that hold of it, by kind: what the semantic head learns to name


@dataclass(frozen=True)
class Source:
    name: str
    splits: dict[str, list[Row]]
    digest: str  # of every row read
    notes: tuple[str, ...]  # what was decided about it


Given = Iterable[tuple[str, Callable[[], Any]]]  # of each row, its place, and what reads it


def read(where: Path | str, name: str = "data", columns: Mapping[str, str] | None = None) -> Source:
    """All rows of a folder or of a data set of the Hub, or one error that names the first faults by their places."""
    if on_hub(where):
        given, notes = from_hub(str(where), columns or {})
    else:
        given, notes = from_folder(Path(where).expanduser()), []
    wrong: list[str] = []
    splits = {split: list(rows(found, wrong)) for split, found in given.items()}
    layouts = Counter(row.layout for found in splits.values() for row in found)
    if len(layouts) > 1:
        first = {row.layout: row.place for found in reversed(splits.values()) for row in reversed(found)}
        told = (f"{n} rows of {layout} (first {first[layout]})" for layout, n in layouts.items())
        wrong.append(f"layouts are mixed: {', '.join(told)}; give each a source of its own")
    if not splits["train"] and not wrong:
        wrong.append("there are no rows to train on")
    told = "".join(f"{split} {row.digest}\n" for split, found in splits.items() for row in found)
    splits, more = apart(splits, wrong)
    if wrong:
        others = f"\n... and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(f"{where} cannot be trained on:\n" + "\n".join(wrong[:SHOWN]) + others)
    return Source(name, splits, hashlib.sha256(told.encode()).hexdigest(), (*notes, *more))


def on_hub(where: Path | str) -> bool:
    return bool(hub.NAME.fullmatch(str(where))) and not Path(where).exists()


def from_folder(folder: Path) -> dict[str, Given]:
    if not folder.is_dir():
        what = "is a file, and the folder that holds train.jsonl is needed" if folder.exists() else "is no folder here"
        raise ValueError(f"{folder} {what}")
    files = {split: folder / f"{split}.jsonl" for split in SPLITS if (folder / f"{split}.jsonl").exists()}
    if "train" not in files:
        found = sorted(p.name for p in folder.glob("*"))[:SHOWN]
        there = f"it holds {shown(found)}" if found else "it is empty"
        raise ValueError(f"{folder} has no train.jsonl, {there}; put rows there, one JSON object a line")
    if odd := [file.name for file in files.values() if not file.is_file()]:
        raise ValueError(f"{folder / odd[0]} is no plain file")
    return {split: lines(file) for split, file in files.items()}


def lines(file: Path) -> Given:
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if line.strip():
            yield f"{file.name}:{number}", lambda line=line: json.loads(line.decode())


def from_hub(name: str, columns: Mapping[str, str]) -> tuple[dict[str, Given], list[str]]:
    found, notes = hub.fetch(name, set().union(*LAYOUTS.values(), MORE), columns)
    return {
        split: ((f"{split}:{n}", lambda row=row: row) for n, row in enumerate(rows)) for split, rows in found.items()
    }, notes


def rows(given: Given, wrong: list[str]) -> Iterator[Row]:
    for place, get in given:
        try:
            yield understood(place, get())
        except UnicodeDecodeError as e:
            wrong.append(f"{place}: not UTF-8: {e.reason} at byte {e.start} of the line")
        except (ValueError, RecursionError) as e:
            said = f"not JSON: {e}" if isinstance(e, json.JSONDecodeError | RecursionError) else str(e)
            wrong.append(f"{place}: {said}")


def understood(place: str, given: Any) -> Row:
    if not isinstance(given, dict):
        raise ValueError(f"a {type(given).__name__} where an object was due")
    layout = next((name for name, keys in LAYOUTS.items() if keys <= given.keys()), None)
    if layout is None:
        raise ValueError(f"has {shown(sorted(given))}; messages, prompt and completion, or text are needed")
    if unknown := given.keys() - LAYOUTS[layout] - MORE:
        raise ValueError(f"has {shown(sorted(unknown))} besides {layout}, which would have no effect; leave it out")
    if layout == "text":
        messages, text = (), worded(given["text"], "text")
    elif layout == "prompt":
        words = {"user": worded(given["prompt"], "prompt"), "assistant": worded(given["completion"], "completion")}
        messages, text = tuple({"role": role, "content": said} for role, said in words.items()), ""
    else:
        messages, text = conversation(given["messages"]), ""
    messages = with_notes(messages, given.get("notes", []))
    whole = json.dumps([messages, text], sort_keys=True)
    json.dumps(given, ensure_ascii=False).encode()  # half a surrogate pair is JSON, and no text
    if len(whole) > LONGEST:
        raise ValueError(f"has {len(whole)} characters; up to {LONGEST} are read")
    digest = hashlib.sha256(whole.encode()).hexdigest()
    document, concepts = worded(given.get("document", digest), "document"), named(given.get("concepts", {}))
    return Row(place, layout, messages, text, document, digest, concepts)


def named(given: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(given, dict):
        raise ValueError(f"concepts are {shown(given)}; an object of texts, or lists of texts, by name is needed")
    found = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in given.items()}
    return {name: tuple(worded(v, f"the concept {name}") for v in values) for name, values in found.items()}


def worded(text: Any, what: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what} is {shown(text)}; some text is needed")
    return text


def conversation(given: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(given, list) or not given:
        raise ValueError(f"messages is {shown(given)}; a list of turns is needed")
    for number, turn in enumerate(given, 1):
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            raise ValueError(f"turn {number} is {shown(turn)}; a role ({', '.join(ROLES)}) and content are needed")
        if not turn.get("tool_calls"):
            worded(turn.get("content"), f"the content of turn {number}")
    if all(turn["role"] != "assistant" for turn in given):
        raise ValueError("no turn is the assistant's: there is nothing to learn")
    return tuple(given)


def with_notes(messages: tuple[dict[str, Any], ...], notes: Any) -> tuple[dict[str, Any], ...]:
    """Notes go before what the first turn says, so that any chat template carries them."""
    if not notes:
        return messages
    if not isinstance(notes, list) or not messages:
        raise ValueError(f"notes are {shown(notes)}; a list of texts, beside messages or a prompt, is needed")
    said = "\n".join(f"- {worded(note, 'a note')}" for note in notes)
    first = messages[0] | {"content": f"Notes:\n{said}\n\n{messages[0].get('content') or ''}"}
    return first, *messages[1:]


def apart(splits: dict[str, list[Row]], wrong: list[str]) -> tuple[dict[str, list[Row]], list[str]]:
    """No document in two splits; where no rows are held out, some documents of `train` are."""
    notes = []
    homes: dict[str, tuple[str, str]] = {}
    for split, found in splits.items():
        for row in found:
            for key in (row.digest, f"document {row.document}"):
                home, place = homes.setdefault(key, (split, row.place))
                if home != split:
                    wrong.append(f"{row.place}: is in {place} too; what is measured must not be trained on")
                    break
    if "valid" not in splits:
        held = [row for row in splits["train"] if is_held(row.document)]
        kept = [row for row in splits["train"] if not is_held(row.document)]
        if not held and len({row.document for row in kept}) > 1:
            last = max(row.document for row in kept)
            held, kept = [r for r in kept if r.document == last], [r for r in kept if r.document != last]
        if held and kept:
            splits = splits | {"train": kept, "valid": held}
            notes.append(f"no valid.jsonl: {len(held)} of {len(held) + len(kept)} rows are held out, by document")
        else:
            notes.append("nothing is held out: there is one document only")
    elif not splits["valid"]:
        notes.append("valid.jsonl is empty: nothing is held out")
    if twice := len(splits["train"]) - len({row.digest for row in splits["train"]}):
        notes.append(f"{twice} rows of train.jsonl say what another one says")
    return splits, notes


def leaks(sources: Iterable[Source]) -> list[str]:
    """Rows that one source holds out and another one trains on."""
    homes = {row.digest: f"{s.name}, {row.place}" for s in sources for row in s.splits["train"]}
    held = [(f"{s.name}, {row.place}", row) for s in sources for row in s.splits.get("valid", [])]
    return [f"{place}: is in {homes[row.digest]} too" for place, row in held if row.digest in homes]


def is_held(document: str) -> bool:
    return int.from_bytes(hashlib.sha256(f"held {document}".encode()).digest()[:4], "big") % 100 < HELD_OUT
