"""Replies continued some way, token by token, until each has its end; what a token carries, whichever way it came."""

import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, Self

import mlx.core as mx
import numpy as np

from agp.beyond import Cost
from agp.generate import Sampler, greedy
from agp.replies import Replies
from agp.sites import At, Fn, Site, plain, record

MANY = 1 << 30  # tokens: as good as without an end


class Seen(NamedTuple):
    """What was said of all that were asked at a tap, and which of them it is."""

    told: Any
    at: tuple[int, int]  # row and position


class Token(NamedTuple):
    row: int
    id: int
    block: int  # the last that it needed
    logits: mx.array | None  # V: what it was chosen from, unless that was elsewhere
    seen: Seen | None = None  # what the router or the drafter said of it
    watched: mx.array | None = None  # its state after the block that is watched, if it came so far
    seconds: float = 0.0
    away: Cost | None = None  # of another host, where that ran the blocks above
    fallen: bool = False  # whether early has gone over to lossless before it


class Way(Protocol):
    """How replies are continued."""

    replies: Replies

    def step(self, counts: np.ndarray, left: int = MANY) -> list[list[Token]]:
        """One or more tokens of each row; `counts` says to the sampler which draw the first of each is. The row that
        goes on longest has so many tokens `left`: what would come after them is not begun."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Only these go on."""

    def join(self, replies: Replies) -> None:
        """These go on beside them, as the last rows."""


class Begun(NamedTuple):
    """The next token of each row, asked for and maybe not known yet."""

    ids: mx.array  # B
    normed: mx.array  # B 1 D: what the head says it of
    logits: mx.array  # B V
    states: dict[Site, mx.array]  # B 1 D


class Full:
    """All blocks for every token; the next one is begun before this one is known."""

    def __init__(
        self, replies: Replies, sampler: Sampler = greedy, *, watch: int | None = None, tap: int | None = None
    ):
        """States after block `watch` go with the tokens. Of the places that told the last ones, the state after `tap`
        is kept, and the one that the head was given."""
        self.replies, self.sampler = replies, sampler
        self.watch, self.tap = (None if block is None else Site(block, "block") for block in (watch, tap))
        self.state: mx.array | None = None  # B 1 D
        self.normed: mx.array | None = None  # likewise
        self.ahead: Begun | None = None

    def step(self, counts: np.ndarray, left: int = MANY) -> list[list[Token]]:
        replies, model = self.replies, self.replies.model
        now = self.ahead or self.begun(replies.current, counts)
        room = left > 1 and replies.where.shape[1] < model.config.max_position_embeddings
        self.ahead = self.begun(now.ids[:, None], counts + 1) if room else None
        ids, last = np.array(now.ids).tolist(), model.config.num_layers - 1
        replies.say([[id] for id in ids])
        watched = None if self.watch is None else now.states[self.watch][:, 0]
        self.state, self.normed = None if self.tap is None else now.states[self.tap], now.normed
        of = lambda row: None if watched is None else watched[row]
        return [[Token(row, id, last, now.logits[row], watched=of(row))] for row, id in enumerate(ids)]

    def begun(self, tokens: mx.array, counts: np.ndarray) -> Begun:
        model, states = self.replies.model, {}
        visit = record(states, [site for site in (self.watch, self.tap) if site is not None])
        normed = model.normed(self.replies.run(tokens, model.config.num_layers, visit=visit).hidden)
        logits = model.head(normed)[:, 0]
        found = Begun(self.sampler(logits, counts), normed, logits, states)
        mx.async_eval(found.ids, logits, *states.values())
        return found

    def rest(self) -> None:
        """What is begun is forgotten: others go on."""
        if self.ahead is not None:
            self.replies.retain(np.zeros((len(self.replies.texts), 1), bool))
            self.ahead = None

    def keep(self, rows: Sequence[int]) -> None:
        self.replies.keep(rows)
        self.forget(rows)

    def forget(self, rows: Sequence[int]) -> None:
        """All but these, of what is known beside the replies."""
        if self.ahead is not None:
            at, (ids, normed, logits, states) = mx.array(list(rows)), self.ahead
            self.ahead = Begun(ids[at], normed[at], logits[at], {site: state[at] for site, state in states.items()})

    def join(self, replies: Replies) -> None:
        self.rest()
        self.replies.join(replies)


def follow(way: Way, *, max_tokens: int, stop: Collection[int] = ()) -> Iterator[Token]:
    """Tokens of all rows, until each has `max_tokens`, one of `stop`, which is handed out too, or a full context."""
    room = way.replies.model.config.max_position_embeddings
    limits = np.minimum(max_tokens, room - way.replies.lengths)
    counts, rows = np.zeros(len(limits), int), np.arange(len(limits))
    while len(rows):
        going, started = [], time.perf_counter()
        told = way.step(counts[rows], int((limits - counts)[rows].max()))
        spent = time.perf_counter() - started
        for at, tokens in enumerate(told):
            row = rows[at]
            for token in tokens[: limits[row] - counts[row]]:
                counts[row] += 1
                yield token._replace(row=int(row), seconds=spent / len(tokens))
                if token.id in stop:
                    break
            else:
                going += [at] if counts[row] < limits[row] else []
        if len(going) < len(rows):
            rows = rows[going]
            if going:
                way.keep(going)


class Watch:
    """States after one block, by row, whoever is still there."""

    def __init__(self, block: int | None):
        self.block, self.states, self.rows = block, {}, np.zeros(0, int)
        self.visit = plain if block is None else At([Site(block, "block")], self.take)

    def begun(self, rows: np.ndarray) -> Self:
        self.states, self.rows = {}, rows
        return self

    def take(self, site: Site, fn: Fn, x: mx.array) -> mx.array:
        y = fn(x)
        self.states |= {int(row): y[at] for at, row in enumerate(self.rows)}
        return y

    def of(self, row: int, position: int = 0) -> mx.array | None:
        return self.states[row][position] if row in self.states else None
