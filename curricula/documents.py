"""What the teacher is observed on: a document is a prompt and what the teacher itself says to it.

Labels hold for the text that will be met. Of a conversation that is the teacher's likeliest answer; of plain text,
whose likeliest continuation is a loop, it is a drawn one of a window.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from agp.data import Row
from agp.text import Tokenizer

T = TypeVar("T")


class Prompt(NamedTuple):
    source: str
    cluster: str  # documents of one are not independent: intervals count them as one
    ids: tuple[int, ...]
    drawn: bool  # whether its continuation is drawn or the likeliest
    concepts: dict[str, tuple[str, ...]]


def prompts(
    rows: Mapping[str, Sequence[Row]],
    tokenizer: Tokenizer,
    *,
    longest: int,
    window: int,
    windows: int,
    turns: int | None = None,
) -> list[Prompt]:
    """Those of like kind and length together. Of each source so many `windows` of plain text, or so many `turns`."""
    found = []
    for source, given in rows.items():
        said = [row for row in given if row.layout != "text"]
        found += [asked(source, row, tokenizer, longest) for row in spread(said, len(said) if turns is None else turns)]
        found += cut(source, [row for row in given if row.layout == "text"], tokenizer, window, windows)
    return sorted(found, key=lambda prompt: (prompt.drawn, len(prompt.ids), prompt.ids))


def asked(source: str, row: Row, tokenizer: Tokenizer, longest: int) -> Prompt:
    """All up to the last turn of the assistant's; of one that is too long, the end."""
    last = max(i for i, turn in enumerate(row.messages) if turn["role"] == "assistant")
    bare = row.layout == "prompt" and tokenizer.template is None
    ids = tokenizer.encode(row.messages[0]["content"]) if bare else tokenizer.chat(row.messages[:last])
    return Prompt(source, f"{source}/{row.document}", tuple(ids[-longest:]), False, row.concepts)


def cut(source: str, rows: Sequence[Row], tokenizer: Tokenizer, window: int, windows: int) -> list[Prompt]:
    """Windows of plain text, evenly spread over all of it."""
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    texts = [tokenizer.encode(row.text, bos=False) for row in rows]
    places = [(r, at) for r, ids in enumerate(texts) for at in range(0, len(ids) - window, max(1, window // 2))]
    return [
        Prompt(source, f"{source}/{rows[r].document}", (*begin, *texts[r][at : at + window]), True, rows[r].concepts)
        for r, at in spread(places, windows)
    ]


def spread(given: Sequence[T], count: int) -> list[T]:
    """At most so many, evenly over all of them."""
    few = min(count, len(given))
    return [given[i] for i in np.linspace(0, len(given) - 1, few).astype(int)] if few else []
