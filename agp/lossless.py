"""Tokens drafted below a tap, then all blocks above it once for all of them: each token is that of full depth.

The blocks below the tap, and the keys and values they make, serve drafts and full depth alike; what is taken back is
forgotten. First come drafts that cost next to nothing, all in one pass through these blocks; the tap checks them, and
goes on by itself where it is sure. A sampler gives a draft and its judge the same chances, so that drawn tokens are
those of full depth too.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from agp.beyond import Beyond, Cost, within
from agp.choose import Proving, chosen, drawn
from agp.follow import MANY, Full, Seen, Token, Watch
from agp.generate import Sampler, greedy
from agp.models.decoder import Stream
from agp.pace import Pace
from agp.replies import Replies


class Proposer(Protocol):
    def __call__(self, texts: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """Of texts, with drafts after each, up to so many tokens that may come next. No drafts: a round begins."""
        ...

    def accept(self, states: mx.array | None) -> None:
        """A round has ended. Full depth chose the last token of each text from these, B 1 D, as the model's head takes
        them; None where that was elsewhere."""

    def keep(self, rows: Sequence[int]) -> None:
        """Only these go on."""


class Drafted(NamedTuple):
    """Of the tokens after some positions."""

    read: mx.array  # B n D, as the model's head takes it
    sure: mx.array  # B n: log-odds that full depth says the same
    seen: Any = None


class Drafter(Protocol):
    tap: int  # the block after which it reads

    def __call__(self, stream: Stream, states: mx.array, there: np.ndarray) -> Drafted | None:
        """After the newest positions. All `states` since the last time are B m D; of some rows not all are `there`.
        None: it has nothing to say."""
        ...

    def accept(self, states: mx.array, stay: np.ndarray) -> None:
        """Of the positions since the last time these stay, B m."""

    def keep(self, rows: Sequence[int]) -> None:
        """Only these go on."""

    def join(self, count: int) -> None:
        """So many new rows go on beside them."""


class Untapped:
    """In the place of a drafter where there are no heads: what was proposed goes up as it is."""

    def __init__(self, tap: int):
        self.tap = tap

    def __call__(self, stream: Stream, states: mx.array, there: np.ndarray) -> None:
        return None

    def accept(self, states: mx.array, stay: np.ndarray) -> None:
        pass

    def keep(self, rows: Sequence[int]) -> None:
        pass

    def join(self, count: int) -> None:
        pass


class Judged(NamedTuple):
    """What full depth says after every place of a round."""

    truth: np.ndarray  # B m
    normed: mx.array | None  # B m D: what the head read, where that is known here
    logits: mx.array | None  # B m V: what it was chosen from, likewise
    costs: dict[int, Cost]  # by row, what it took where it was away


class Lead(NamedTuple):
    """A token that is gone on with."""

    token: int
    seen: Seen | None = None


class Round:
    """New places of all rows since full depth was asked last, B m: tokens there, and what is known below the tap."""

    def __init__(self, rows: int):
        self.tokens, self.there = np.zeros((rows, 0), int), np.zeros((rows, 0), bool)
        self.hidden: Any = None
        self.inputs: Any = None
        self.seen: list[list[Seen | None]] = [[] for _ in range(rows)]  # what was said of each of the tokens

    def add(self, tokens: np.ndarray, there: np.ndarray, stream: Stream, leads: Sequence[Lead | None]) -> None:
        self.tokens, self.there = np.hstack([self.tokens, tokens]), np.hstack([self.there, there])
        self.hidden, self.inputs = after(self.hidden, stream.hidden), after(self.inputs, stream.inputs)
        for row, lead in zip(self.seen, leads, strict=True):
            row += [None if lead is None else lead.seen, *[None] * (tokens.shape[1] - 1)]

    def retain(self, kept: np.ndarray, gone: int) -> None:
        """As the replies do."""
        self.there[:, self.size - kept.shape[1] :] = kept
        if gone:
            self.tokens, self.there, self.hidden = self.tokens[:, :-gone], self.there[:, :-gone], self.hidden[:, :-gone]
            self.inputs = None if self.inputs is None else self.inputs[:, :-gone]
            self.seen = [row[:-gone] for row in self.seen]

    @property
    def size(self) -> int:
        return self.tokens.shape[1]

    def drafts(self) -> list[list[int]]:
        """After the first token of each row, which is none."""
        return [row[there].tolist()[1:] for row, there in zip(self.tokens, self.there, strict=True)]

    def draws(self, counts: np.ndarray) -> np.ndarray:
        """Which draw the token after each place is."""
        return counts[:, None] + np.maximum(self.there.cumsum(1) - 1, 0)


class Lossless:
    def __init__(
        self,
        replies: Replies,
        drafter: Drafter,
        sampler: Sampler = greedy,
        *,
        proposer: Proposer | None = None,
        beyond: Beyond | None = None,
        most: int = 4,
        least: float = 0.0,
        pace: Pace | None = None,
        watch: int | None = None,
        proving: Proving | None = None,
        drawn: bool | None = None,
    ):
        """At most so many drafts at once; by the tap only where it is as sure as `least`, in log-odds. With a `pace`
        none where they would only cost time. Tokens that are `proving` need no whole head. Texts that are
        `drawn`, those of any sampler unless it is said, are paced apart."""
        self.replies, self.drafter, self.sampler, self.proposer = replies, drafter, sampler, proposer
        self.most, self.least, self.watched, self.beyond, self.proving = most, least, Watch(watch), beyond, proving
        self.pace = None if pace is None else pace.text(sampler is not greedy if drawn is None else drawn)
        if beyond is not None and not beyond.same:
            raise ValueError(
                "lossless says what this host would, and the peer answers by another regime; give it one of the same"
            )
        assert watch is None or watch > drafter.tap, "only what all positions pass together is watched"
        self.full = Full(replies, sampler, watch=watch, tap=drafter.tap)

    def step(self, counts: np.ndarray, left: int = MANY) -> list[list[Token]]:
        most = min(self.most, left - 1)
        if self.pace is None:
            return self.drafted(counts, most)
        started, drafting = time.perf_counter(), most > 0 and self.pace.drafts()
        if drafting and self.full.ahead is not None:
            return self.plain(counts, 1)
        if drafting or self.beyond is not None:
            found = self.drafted(counts, most if drafting else 0)
        else:
            found = self.plain(counts, left)
        if left > 1:  # the last one begins nothing, and says nothing of what a step takes
            self.pace.took(drafting, time.perf_counter() - started, sum(map(len, found)) / len(found))
        return found

    def plain(self, counts: np.ndarray, left: int) -> list[list[Token]]:
        found = self.full.step(counts, left)
        assert self.full.state is not None
        self.drafter.accept(self.full.state, np.ones((len(found), 1), bool))
        if self.proposer is not None:
            self.proposer.accept(self.full.normed)
        return found

    def drafted(self, counts: np.ndarray, most: int) -> list[list[Token]]:
        self.full.rest()
        replies, model, tap = self.replies, self.replies.model, self.drafter.tap
        done = self.draft(counts, most)
        watched = self.watched.begun(np.arange(len(counts)))
        truth, normed, logits, costs = self.judged(done, done.draws(counts))
        stay, found = np.zeros_like(done.there), []
        for row, there in enumerate(done.there):
            places, tokens = np.flatnonzero(there).tolist(), []
            for place, then in zip(places, [*places[1:], -1], strict=True):
                stay[row, place], id = True, int(truth[row, place])
                right = then >= 0 and done.tokens[row, then] == id
                block, seen = (tap, done.seen[row][then]) if right else (model.config.num_layers - 1, None)
                of = None if logits is None else logits[row, place]
                away = None if right else costs.get(row)
                tokens.append(Token(row, id, block, of, seen, watched.of(row, place), away=away))
                if not right:
                    break
            found.append(tokens)
        self.drafter.accept(done.hidden, stay)
        if self.proposer is not None:
            self.proposer.accept(None if normed is None else lasts(normed, stay))
        replies.retain(stay)
        replies.close()
        replies.say([[token.id for token in tokens] for tokens in found])
        return found

    def judged(self, done: Round, draws: np.ndarray) -> Judged:
        model, said = self.replies.model, None
        stream = self.replies.stream(done.hidden, done.inputs)
        if self.beyond is not None:
            stream, tokens = within(stream, model.config), mx.array(done.tokens)
            said = self.beyond(stream, tokens, range(len(draws)), logits=self.sampler is not greedy)
        if said is not None:
            ids = said.tokens if said.logits is None else drawn(said.logits, self.sampler, draws)
            return Judged(ids, None, said.logits, dict(enumerate(said.costs)))
        normed = model.normed(model.blocks(stream, start=self.drafter.tap + 1, visit=self.watched.visit).hidden)
        ids, logits = chosen(model.head, normed, self.sampler, draws, self.proving)
        return Judged(ids, normed, logits, {})

    def draft(self, counts: np.ndarray, most: int) -> Round:
        """Each row's last token, and what may come after it."""
        replies, done = self.replies, Round(len(counts))
        leads: list[Lead | None] = [Lead(text[-1]) for text in replies.texts]
        while any(leads):
            tokens, there = self.beside(leads, done, most)
            stream = replies.run(mx.array(tokens), self.drafter.tap + 1)
            done.add(tokens, there, stream, leads)
            leads = [None] * len(leads)
            if done.size <= most:
                leads, there = self.check(done, there, stream, counts)
            done.retain(there, replies.retain(there))
        return done

    def beside(self, leads: Sequence[Lead | None], done: Round, most: int) -> tuple[np.ndarray, np.ndarray]:
        """What goes through the blocks below the tap at once, B n, and where there is something."""
        proposed: list[list[int]] = [[] for _ in leads]
        if self.proposer is not None:
            ends = [[lead.token] if lead and done.size else [] for lead in leads]  # the first is in the text already
            drafts = [[*of, *end] for of, end in zip(done.drafts(), ends, strict=True)]
            proposed = self.proposer(self.replies.texts, drafts, most - done.size)
        said = [[lead.token, *more] if lead else [] for lead, more in zip(leads, proposed, strict=True)]
        tokens = np.zeros((len(said), max(map(len, said))), int)
        for row, ids in zip(tokens, said, strict=True):
            row[: len(ids)] = ids
        return tokens, np.arange(tokens.shape[1]) < np.array([[len(ids)] for ids in said])

    def check(
        self, done: Round, there: np.ndarray, stream: Stream, counts: np.ndarray
    ) -> tuple[list[Lead | None], np.ndarray]:
        """By the tap: what it goes on with, and which of the newest places it leaves. Where it is unsure they stay."""
        drafted, size = self.drafter(stream, done.hidden, done.there), there.shape[1]
        if drafted is None:
            return [None] * len(there), there
        draws = done.draws(counts)[:, -size:]
        ids, _ = chosen(self.replies.model.head, drafted.read, self.sampler, draws, self.proving)
        sure, leads, kept = np.array(drafted.sure) >= self.least, [], there.copy()
        for row in range(len(there)):
            lead = None
            for place in np.flatnonzero(there[row]).tolist():
                id, seen = int(ids[row, place]), Seen(drafted.seen, (row, place))
                more = place + 1 < size and there[row, place + 1]
                if more and (done.tokens[row, place + 1 - size] == id or not sure[row, place]):
                    done.seen[row][place + 1 - size] = seen
                    continue
                kept[row, place + 1 :] = False
                lead = Lead(id, seen) if sure[row, place] else None
                break
            leads.append(lead)
        return leads, kept

    def keep(self, rows: Sequence[int]) -> None:
        self.replies.keep(rows)
        self.forget(rows)

    def forget(self, rows: Sequence[int]) -> None:
        """All but these, of what is known beside the replies."""
        self.full.forget(rows)
        self.drafter.keep(rows)
        if self.proposer is not None:
            self.proposer.keep(rows)
        if self.beyond is not None:
            self.beyond.keep(rows)

    def join(self, replies: Replies) -> None:
        self.full.rest()
        self.replies.join(replies)
        self.expect(len(replies.texts))

    def expect(self, count: int) -> None:
        """So many new rows, of what is known beside the replies."""
        self.drafter.join(count)
        if self.beyond is not None:
            self.beyond.join(count)


def lasts(states: mx.array, stay: np.ndarray) -> mx.array:
    """B 1 D: of each row the last that stays."""
    ends = stay.shape[1] - 1 - stay[:, ::-1].argmax(1)
    return states[mx.arange(len(stay))[:, None], mx.array(ends)[:, None]]


def after(known: Any, new: Any) -> Any:
    return new if known is None else mx.concatenate([known, new], axis=1)
