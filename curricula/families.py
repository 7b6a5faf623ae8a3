"""Twelve generated task families with ground truth, and the splits that all later work is measured on.

An item is a pure function of (family, split, index). Its split is a sha256 hash of its body: the text of the prompt
without the wording. So one content falls into one split however it is worded, and the pretrain stream can only ever
emit prompts whose hash says `pretrain`. A clean/corrupt pair is emitted only if both bodies hash to the same split, so
a twin of a test item is as unseen as the item. `shift` is a distribution of its own (other wordings, other words,
longer instances); no other split draws from it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from curricula import tasks_code, tasks_manner, tasks_symbols
from curricula.task import Case, Task

TASKS: dict[str, Task] = {
    "copying": tasks_symbols.COPYING,
    "delimiter_tracking": tasks_symbols.DELIMITERS,
    "json_schema": tasks_symbols.JSON_SCHEMA,
    "factual_recall": tasks_symbols.RECALL,
    "arithmetic": tasks_symbols.ARITHMETIC,
    "code_syntax": tasks_code.CODE_SYNTAX,
    "code_semantics": tasks_code.CODE_SEMANTICS,
    "dead_code": tasks_code.DEAD_CODE,
    "verbosity_control": tasks_manner.VERBOSITY,
    "uncertainty_signalling": tasks_manner.UNCERTAINTY,
    "refusal_compliance": tasks_manner.REFUSAL,
    "variable_renaming": tasks_code.RENAMING,
}
FAMILIES = tuple(TASKS)
SHARES = {"pretrain": range(0, 85), "find": range(85, 90), "tune": range(90, 95), "test": range(95, 100)}
SPLITS = (*SHARES, "shift")
TWIN_TRIES = 80  # a twin lands in a 5 % split once in twenty tries; items without one are not emitted
TWIN_MORE = 8  # tries spent after the first twin on one of equal length


@dataclass(frozen=True)
class Pair:
    """The corrupt side of a clean/corrupt pair: same wording, a body one small step away, another right answer."""

    prompt: str
    body: str
    answer: str


@dataclass(frozen=True)
class Item:
    family: str
    split: str
    index: int
    prompt: str
    body: str
    answer: str
    operation: str
    invariants: tuple[str, ...]
    bundle: str
    wording: int
    description: str
    corrupt: Pair


def split_of(family: str, body: str) -> str:
    """The split of a body of the plain distribution; the wording plays no part."""
    bucket = int.from_bytes(hashlib.sha256(f"{family}\n{body}".encode()).digest()[:8], "big") % 100
    return next(split for split, share in SHARES.items() if bucket in share)


def item(family: str, split: str, index: int) -> Item:
    """The index-th item of a family in a split: the first draw whose body and twin both belong there."""
    if family not in TASKS:
        raise ValueError(f"item: unknown family {family!r}; the families are {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise ValueError(f"item: unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    task, shifted = TASKS[family], split == "shift"
    rng = Random(f"{family}/{split}/{index}")
    while True:
        state = task.draw(rng, shifted)
        case = task.render(state)
        if not shifted and split_of(family, case.body) != split:
            continue
        twin = find_twin(task, family, split, state, case, rng)
        if twin is not None:
            return worded(task, family, split, index, case, twin, rng)


def find_twin(task: Task, family: str, split: str, state, case: Case, rng: Random) -> Case | None:
    """A neighbour with another answer in the same split, of equal length where one turns up soon."""
    shifted = split == "shift"
    tries, more = (TWIN_TRIES, TWIN_MORE) if split in ("pretrain", "shift") else (4 * TWIN_TRIES, 2 * TWIN_TRIES)
    first, left = None, tries
    while left > 0:
        left -= 1
        twin = task.render(task.disturb(rng, state, shifted))
        if twin.answer == case.answer or twin.body == case.body:
            continue
        if shifted or split_of(family, twin.body) == split:
            if len(twin.body) == len(case.body):
                return twin
            if first is None:
                first, left = twin, min(left, more)
    return first


def worded(task: Task, family: str, split: str, index: int, case: Case, twin: Case, rng: Random) -> Item:
    wordings = (task.shifted if split == "shift" else task.wordings)[case.operation]
    wording = rng.randrange(len(wordings))
    template = wordings[wording]
    return Item(
        family=family,
        split=split,
        index=index,
        prompt=template.replace("{body}", case.body),
        body=case.body,
        answer=case.answer,
        operation=case.operation,
        invariants=case.invariants,
        bundle=f"{case.operation}.{case.invariants[0]}",
        wording=wording,
        description=task.asks[case.operation],
        corrupt=Pair(template.replace("{body}", twin.body), twin.body, twin.answer),
    )


def items(family: str, split: str, start: int = 0) -> Iterator[Item]:
    """Items of a split in order, each content once."""
    seen: set[str] = set()
    index = start
    while True:
        found = item(family, split, index)
        index += 1
        if found.body not in seen:
            seen.add(found.body)
            yield found


def bare_prompt(prompt: str) -> str:
    """The text a model continues when no turns are used; the answer starts on the next line."""
    return f"{prompt}\nAnswer:\n"


def chat_prompt(prompt: str) -> str:
    """The same question as a turn; the same text comes out of the chat template."""
    return f"<|turn>user\n{prompt}<turn|>\n<|turn>model\n"
