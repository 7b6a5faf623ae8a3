"""Tokens that leave at the depth they need, by a router that is asked at every tap, and the audit of its promise.

No head is known here. Every tap stands after the last block that makes keys and values, so whoever left early left no
hole behind, and what comes later sees the same as if it had gone on. In Gemma 3n that is so too: blocks below the
sharing point make keys and values of their own, and no token leaves there.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from agp.audit import Audit
from agp.beyond import Beyond, Said, within
from agp.cache import KV
from agp.choose import Chosen, Proving, chosen
from agp.follow import MANY, Seen, Token, Watch
from agp.generate import Sampler, greedy
from agp.layers import Place
from agp.lossless import Lossless
from agp.models.decoder import Stream
from agp.replies import Replies


class Leaving(Protocol):
    """Of rows at a tap."""

    @property
    def leaves(self) -> mx.array: ...  # B 1

    @property
    def read(self) -> mx.array: ...  # B 1 D: what the model's head says of it is the token

    @property
    def seen(self) -> Any: ...


class Let(NamedTuple):
    """One row that may leave."""

    block: int
    seen: Seen
    read: mx.array  # 1 D


class Away(NamedTuple):
    """Rows that went to full depth elsewhere."""

    rows: list[int]
    said: Said | None


class Router(Protocol):
    taps: tuple[int, ...]  # blocks

    def __call__(self, states: mx.array, place: Place, shared: Mapping[str, KV]) -> Leaving | None:
        """At the last of the taps so far, T B 1 D; it is called at every one, from the first on."""

    def narrow(self, rows: Sequence[int]) -> None:
        """Only these go on to the next tap."""

    def keep(self, rows: Sequence[int]) -> None:
        """Only these go on at all."""

    def join(self, count: int) -> None:
        """So many new rows go on beside them."""


class Early:
    """By a router; all blocks run for those that nobody lets go, and for those that an audit asks for.

    They may be those of a larger regime, beyond: such a token is that one's, and an audit compares with it.
    """

    def __init__(
        self,
        replies: Replies,
        router: Router,
        sampler: Sampler = greedy,
        *,
        audit: Audit | None = None,
        watch: int | None = None,
        beyond: Beyond | None = None,
        proving: Proving | None = None,
    ):
        """Tokens that are `proving` need no whole head."""
        self.replies, self.router, self.sampler, self.audit, self.beyond = replies, router, sampler, audit, beyond
        self.proving = proving
        self.watched = Watch(watch)

    def step(self, counts: np.ndarray, left: int = MANY) -> list[list[Token]]:
        """Nothing is begun before its time: it is all one how many are `left`."""
        replies, rows = self.replies, len(self.replies.texts)
        asked = np.zeros(rows, bool) if self.audit is None else self.audit.drawn(rows)
        let, ended, away = self.climb(asked)
        ids, logits = self.chosen(let, ended, away, counts)
        if self.audit is not None:
            self.compare(ids, let, np.flatnonzero(asked), counts)
        replies.say(ids[:, None].tolist())
        last, found = replies.model.config.num_layers - 1, []
        costs = {} if away.said is None else dict(zip(away.rows, away.said.costs, strict=True))
        for at, id in enumerate(ids.tolist()):
            block, seen = (last, None) if at in ended or at in away.rows else let[at][:2]
            found.append([Token(at, id, block, logits.get(at), seen, self.watched.of(at), away=costs.get(at))])
        return found

    def chosen(self, let: Mapping[int, Let], ended: dict[int, mx.array], away: Away, counts: np.ndarray):
        """The token of each row, and where that is known here what it was chosen from."""
        reads = {at: leaving.read for at, leaving in let.items() if at not in away.rows} | ended
        ids, logits, here = np.zeros(len(counts), int), {}, sorted(reads)
        if here:
            found = self.say([reads[at] for at in here], counts[here])
            ids[here] = found.ids[:, 0]
            logits = {} if found.logits is None else dict(zip(here, found.logits[:, 0], strict=True))
        if away.said is not None and away.said.logits is not None:
            told = away.said.logits[:, 0]
            ids[away.rows] = np.array(self.sampler(told, counts[away.rows]))
            logits |= dict(zip(away.rows, told, strict=True))
        elif away.said is not None:
            ids[away.rows] = away.said.tokens[:, 0]
        return ids, logits

    def say(self, reads: Sequence[mx.array], counts: np.ndarray) -> Chosen:
        return chosen(self.replies.model.head, mx.stack(list(reads)), self.sampler, counts[:, None], self.proving)

    def climb(self, asked: np.ndarray) -> tuple[dict[int, Let], dict[int, mx.array], Away]:
        """Who may leave, by row; what is read, 1 D, of those that went to full depth; and who did so elsewhere."""
        model, router, let = self.replies.model, self.router, {}
        rows, states, below = np.arange(len(asked)), [], router.taps[0] + 1
        watched = self.watched.begun(rows)
        stream = self.replies.run(self.replies.current, below, visit=watched.visit)
        for tap in router.taps:
            stream = model.blocks(stream, start=below, stop=tap + 1, visit=watched.visit)
            states, below = [*states, stream.hidden], tap + 1
            told = router(mx.stack(states), stream.place, stream.shared)
            if told is None:
                continue
            leaves = np.array(told.leaves)[:, 0]
            for at in np.flatnonzero(leaves).tolist():
                let.setdefault(int(rows[at]), Let(tap, Seen(told.seen, (at, 0)), told.read[at]))
            going = np.flatnonzero(~leaves | asked[rows]).tolist()
            if not going:
                return let, {}, Away([], None)
            if len(going) < len(rows):
                rows, at = rows[going], mx.array(going)
                watched.rows = rows
                router.narrow(going)
                stream, states = narrowed(stream, at), [state[at] for state in states]
        if self.beyond is not None:
            stream, tokens = within(stream, model.config), self.replies.current[mx.array(rows)]
            said = self.beyond(stream, tokens, rows.tolist(), logits=self.sampler is not greedy)
            if said is not None:
                return let, {}, Away(rows.tolist(), said)
        normed = model.normed(model.blocks(stream, start=below, visit=watched.visit).hidden)
        return let, {int(row): normed[at] for at, row in enumerate(rows)}, Away([], None)

    def compare(self, ids: np.ndarray, let: Mapping[int, Let], asked: np.ndarray, counts: np.ndarray) -> None:
        assert self.audit is not None
        early = [at for at in asked.tolist() if at in let]
        for _ in range(len(asked) - len(early)):
            self.audit.told(False)
        if early:
            found = self.say([let[at].read for at in early], counts[early])
            for differs in found.ids[:, 0] != ids[early]:
                self.audit.told(bool(differs))

    def keep(self, rows: Sequence[int]) -> None:
        self.replies.keep(rows)
        self.router.keep(rows)
        if self.beyond is not None:
            self.beyond.keep(rows)

    def join(self, replies: Replies) -> None:
        self.replies.join(replies)
        self.router.join(len(replies.texts))
        if self.beyond is not None:
            self.beyond.join(len(replies.texts))


class Watched:
    """Early, until an audit finds its promise broken; from then on lossless."""

    def __init__(self, early: Early, lossless: Lossless):
        assert early.audit is not None and early.replies is lossless.replies
        self.early, self.lossless, self.replies = early, lossless, early.replies

    @property
    def broken(self) -> bool:
        assert self.early.audit is not None
        return self.early.audit.broken

    def step(self, counts: np.ndarray, left: int = MANY) -> list[list[Token]]:
        if not self.broken:
            return self.early.step(counts)
        return [[token._replace(fallen=True) for token in row] for row in self.lossless.step(counts, left)]

    def keep(self, rows: Sequence[int]) -> None:
        self.early.keep(rows)
        self.lossless.forget(rows)

    def join(self, replies: Replies) -> None:
        self.lossless.full.rest()
        self.early.join(replies)
        self.lossless.expect(len(replies.texts))


def narrowed(stream: Stream, at: mx.array) -> Stream:
    """Some rows of it."""
    given = {name: None if (x := getattr(stream, name)) is None else x[at] for name in ("inputs", "pad", "where")}
    shared = {kind: KV(kv.keys[at], kv.values[at]) for kind, kv in stream.shared.items()}
    return stream._replace(hidden=stream.hidden[at], shared=shared, **given)
