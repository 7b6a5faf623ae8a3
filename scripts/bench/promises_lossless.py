"""Whether lossless says what full depth says: answers token for token, alone and side by side, and with a peer."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from agp.beyond import Beyond
from agp.follow import MANY, Token, Way, follow
from agp.generate import chance, generate, greedy, make_sampler
from agp.models.decoder import Decoder
from agp.pace import Pace, Text
from agp.replies import Replies
from curricula.documents import Prompt
from scripts.routes import Opened, way
from scripts.serve.draws import Draws, numbered

LONGEST = 24  # tokens of an answer
NEAR = 1e-4  # logits that lie within it are a tie: how sums are rounded decides it


class Answer(NamedTuple):
    """Of full depth."""

    ids: list[int]
    near: list[list[int]]  # at each place, other tokens that tie with the one it says


class Difference(NamedTuple):
    prompt: int
    place: int  # of the answer, from 0
    full: int | None  # what is said there; None: the answer is over
    said: int | None
    tie: bool


class Manner(NamedTuple):
    """How an answer is asked for."""

    batch: int
    drawn: bool = False  # at temperature 1, the seed being the prompt's number; or the likeliest
    peer: bool = False

    def __str__(self) -> str:
        parts = ["drawn" if self.drawn else "greedy", f"batch {self.batch}", *(["with a peer"] if self.peer else [])]
        return ", ".join(parts)


MANNERS = (
    Manner(1),
    Manner(8),
    Manner(1, peer=True),
    Manner(8, peer=True),
    Manner(1, drawn=True),
    Manner(8, drawn=True),
)


class Compared(NamedTuple):
    prompts: int
    differences: list[Difference]
    drafted: float  # share of tokens that were drafted right
    away: float  # share of the others that a peer said

    @property
    def ties(self) -> list[Difference]:
        return [of for of in self.differences if of.tie]

    @property
    def wrong(self) -> list[Difference]:
        return [of for of in self.differences if not of.tie]

    @property
    def identical(self) -> int:
        """Ties are, for there is nothing that full depth would rather say."""
        return self.prompts - len(self.wrong)


def full(model: Decoder, prompt: Sequence[int], number: int, drawn: bool, stop: set[int]) -> Answer:
    sampler, found = make_sampler(1.0 if drawn else 0.0, seed=number), Answer([], [])
    for step in generate(model, prompt, max_tokens=LONGEST, sampler=sampler, stop=stop):
        logits = step.logits.astype(mx.float32)
        if drawn:  # what the sampler chose from
            logits = logits + mx.random.gumbel(logits.shape, key=chance(number, len(found.ids)))
        near = np.flatnonzero(np.array(logits >= logits.max() - NEAR)).tolist()
        assert step.token in near, "full depth says the likeliest"
        found.ids.append(step.token)
        found.near.append([id for id in near if id != step.token])
    return found


def difference(number: int, answer: Answer, said: Sequence[int]) -> Difference | None:
    """The first: what comes after it is another text."""
    for place in range(max(len(answer.ids), len(said))):
        theirs, ours = (ids[place] if place < len(ids) else None for ids in (answer.ids, said))
        if theirs != ours:
            tie = theirs is not None and ours in answer.near[place]
            return Difference(number, place, theirs, ours, tie)
    return None


def groups(prompts: Sequence[Prompt], batch: int) -> list[list[int]]:
    """Numbers of prompts that are answered side by side; of each group the lengths are as unlike as they can be."""
    order = sorted(range(len(prompts)), key=lambda n: (len(prompts[n].ids), n))
    count = math.ceil(len(prompts) / batch)
    return [order[at::count] for at in range(count)]


class Drafting(Pace):
    """Always: what is promised holds whether drafts are worth their while or not."""

    def text(self, drawn: bool = False) -> Text:
        found = Text(self, drawn)
        found.drafts = lambda: True
        return found


class Numbered:
    """A way whose rows each have draws of their own."""

    def __init__(self, way: Way, numbers: Sequence[int]):
        self.way, self.replies, self.numbers = way, way.replies, list(numbers)

    def step(self, counts: np.ndarray, left: int = MANY) -> list[list[Token]]:
        return self.way.step(numbered(self.numbers, counts.tolist()), left)

    def keep(self, rows: Sequence[int]) -> None:
        self.numbers = [self.numbers[row] for row in rows]
        self.way.keep(rows)

    def join(self, replies: Replies) -> None:
        raise AssertionError("all begin together")


def told(
    given: Opened,
    prompts: Sequence[Prompt],
    numbers: Sequence[int],
    manner: Manner,
    beyond: Callable[[int], Beyond] | None,
) -> Iterator[Token]:
    """What lossless says to some prompts side by side."""
    draws, replies = Draws(), Replies.begun(given.heads.decoder, [prompts[n].ids for n in numbers])
    for n in numbers:
        draws.add(n, make_sampler(1.0 if manner.drawn else 0.0, seed=n))
    sampler, far = draws if manner.drawn else greedy, beyond and rows_of(beyond, len(numbers))
    going = way(given, "lossless", replies, sampler, pace=Drafting(), watching=False, beyond=far)
    yield from follow(Numbered(going, numbers), max_tokens=LONGEST, stop=ends(given))


def rows_of(beyond: Callable[[int], Beyond], count: int) -> Callable[[int], Beyond]:
    def joined(tap: int) -> Beyond:
        found = beyond(tap)
        found.join(count - 1)
        return found

    return joined


def ends(given: Opened) -> set[int]:
    tokenizer: Any = given.loaded.tokenizer
    return set(tokenizer.eos_ids)


def compared(
    given: Opened,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    manner: Manner,
    beyond: Callable[[int], Beyond] | None = None,
) -> Compared:
    found, drafted, away, last = [], [], [], given.heads.decoder.config.num_layers - 1
    with tqdm(total=len(prompts), desc=f"lossless, {manner}", leave=False) as bar:
        for numbers in groups(prompts, manner.batch):
            said = [[] for _ in numbers]
            for token in told(given, prompts, numbers, manner, beyond):
                said[token.row].append(token.id)
                drafted.append(token.block < last)
                away += [] if token.block < last else [token.away is not None]
            pairs = zip(numbers, said, strict=True)
            found += [of for n, ids in pairs if (of := difference(n, answers[n], ids)) is not None]
            mx.clear_cache()
            bar.update(len(numbers))
    return Compared(len(prompts), sorted(found), float(np.mean(drafted)), sum(away) / max(len(away), 1))


def alike(found: Sequence[Compared]) -> int:
    """Prompts to which the same is said in every manner."""
    return found[0].prompts - len({of.prompt for each in found for of in each.wrong})
