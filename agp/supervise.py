"""Rows to token ids, and which of them are learned: every assistant turn, a completion, or the whole text."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from agp.data import Row
from agp.models.tensors import some
from agp.text import Tokenizer


class Example(NamedTuple):
    place: str
    ids: np.ndarray  # what the model reads
    learned: np.ndarray  # of each id, whether it is to be predicted


class Prepared(NamedTuple):
    examples: list[Example]
    notes: list[str]


def prepare(rows: Iterable[Row], tokenizer: Tokenizer, limit: int, cut: bool = True) -> Prepared:
    """Rows beyond `limit` tokens lose their end, or are left out; those with nothing left to learn are, too."""
    kept, long, empty = [], [], []
    for row in rows:
        example = supervised(row, tokenizer)
        if len(example.ids) > limit:
            long.append(row.place)
            if not cut:
                continue
            example = Example(example.place, example.ids[:limit], example.learned[:limit])
        if not example.learned[1:].any():
            empty.append(row.place)
        else:
            kept.append(example)
    notes = []
    if long:
        what = "cut off at the end" if cut else "left out"
        notes.append(f"{len(long)} rows have more than {limit} tokens and are {what}: {some(long)}")
    if empty:
        notes.append(f"{len(empty)} rows have nothing left to learn and are left out: {some(empty)}")
    return Prepared(kept, notes)


def supervised(row: Row, tokenizer: Tokenizer) -> Example:
    try:
        if row.layout == "text":
            ids = [*tokenizer.encode(row.text), *ending(tokenizer)]
            return example(row, ids, [i > 0 or tokenizer.bos_id is None for i in range(len(ids))])
        if tokenizer.template is None and row.layout == "prompt":
            return continued(row, tokenizer)
        text, spans = turns(row.messages, tokenizer)
    except ValueError as e:
        raise ValueError(f"{row.place}: {e}") from e
    found = tokenizer.pieces.encode(text, add_special_tokens=False)
    learned = [any(a <= start < b for a, b in spans) for start, _ in found.offsets]
    return example(row, found.ids, learned)


def example(row: Row, ids: Sequence[int], learned: Sequence[bool]) -> Example:
    return Example(row.place, np.array(ids, np.int32), np.array(learned, bool))


def ending(tokenizer: Tokenizer) -> list[int]:
    first: Any = tokenizer.eos_ids[:1]
    return list(first)


def continued(row: Row, tokenizer: Tokenizer) -> Example:
    """A prompt and its completion as one text, for a model without turns."""
    prompt, completion = (turn["content"] for turn in row.messages)
    before = tokenizer.encode(prompt)
    after = [*tokenizer.encode(completion, bos=False), *ending(tokenizer)]
    return example(row, [*before, *after], [False] * len(before) + [True] * len(after))


def turns(messages: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as the template writes it, and where in it the assistant speaks, ends of turns included."""
    whole, spans = tokenizer.render(messages, answer=False), []
    for number, turn in enumerate(messages):
        if turn["role"] != "assistant":
            continue
        before, after = tokenizer.render(messages[:number]), tokenizer.render(messages[: number + 1], answer=False)
        if not (after.startswith(before) and whole.startswith(after.rstrip())):
            raise ValueError(
                f"the chat template writes turn {number + 1} otherwise when others follow, so it cannot be told "
                "from them; end the conversation with it, and give the later turns a row of their own"
            )
        spans.append((len(before), len(after)))
    return whole, spans
