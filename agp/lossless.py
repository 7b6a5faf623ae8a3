"""Tokens drafted at a tap, then all blocks above it once for all of them: each token is that of full depth.

The blocks below the tap, and the keys and values they make, serve drafts and full depth alike; what is taken back is
forgotten. A sampler gives the draft and its judge the same chances, so that drawn tokens are those of full depth too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from agp.follow import Seen, Token, Watch
from agp.generate import Sampler, greedy
from agp.models.decoder import Stream
from agp.replies import Replies


class Drafted(NamedTuple):
    """Of the next token of each row."""

    read: mx.array  # B 1 D, as the model's head takes it
    sure: mx.array  # B 1: log-odds that full depth says the same
    seen: Any = None


class Drafter(Protocol):
    tap: int  # the block after which it reads

    def __call__(self, stream: Stream, states: mx.array) -> Drafted:
        """After the newest of the positions since the last time, whose states are B n D."""
        ...

    def accept(self, states: mx.array, kept: Sequence[int]) -> None:
        """Of the positions since the last time each row's first so many stay."""

    def keep(self, rows: Sequence[int]) -> None:
        """Only these go on."""

    def join(self, count: int) -> None:
        """So many new rows go on beside them."""


class Lossless:
    """Some tokens drafted at a tap, then all blocks above it once for all of them: each token is that of full depth."""

    def __init__(
        self,
        replies: Replies,
        drafter: Drafter,
        sampler: Sampler = greedy,
        *,
        most: int = 4,
        least: float = 0.0,
        watch: int | None = None,
    ):
        """At most so many drafts at once; none of which nobody is as sure as `least`, in log-odds."""
        self.replies, self.drafter, self.sampler = replies, drafter, sampler
        self.most, self.least, self.watched = most, least, Watch(watch)
        assert watch is None or watch > drafter.tap, "only what all positions pass together is watched"

    def step(self, counts: np.ndarray) -> list[list[Token]]:
        replies, model = self.replies, self.replies.model
        tokens, seen, stream, hidden, inputs = self.draft(counts)
        size, watched = len(tokens), self.watched.begun(np.arange(len(counts)))
        stream = stream._replace(hidden=hidden, inputs=joined(inputs))
        logits = model.unembed(model.blocks(stream, start=self.drafter.tap + 1, visit=watched.visit))
        at = counts[:, None] + np.arange(size)
        truth = np.array(self.sampler(logits.flatten(0, 1), at.reshape(-1))).reshape(at.shape)
        drafts = np.array(mx.stack(tokens[1:], axis=1)) if size > 1 else np.zeros((len(truth), 0), int)
        right = np.cumprod(drafts == truth[:, : size - 1], axis=1).sum(1)
        last, found = model.config.num_layers - 1, []
        for row, many in enumerate(right.tolist()):
            depth = [self.drafter.tap] * many + [last]
            told = [*(Seen(of, row) for of in seen[:many]), None]
            said = enumerate(zip(truth[row].tolist(), depth, told, strict=False))
            found.append([Token(row, id, block, logits[row, i], of, watched.of(row, i)) for i, (id, block, of) in said])
        kept = (right + 1).tolist()
        replies.forget(kept, size)
        self.drafter.accept(hidden, kept)
        replies.current = truth[np.arange(len(truth)), right]
        return found

    def draft(self, counts: np.ndarray):
        """Tokens from the current one on, what was said of each draft, and what the blocks above take."""
        replies, model, drafter = self.replies, self.replies.model, self.drafter
        tokens, seen, hidden, inputs = [mx.array(replies.current)], [], None, []
        while True:
            stream = replies.run(tokens[-1][:, None], drafter.tap + 1)
            hidden = stream.hidden if hidden is None else mx.concatenate([hidden, stream.hidden], axis=1)
            inputs.append(stream.inputs)
            if len(tokens) > self.most:
                break
            drafted = drafter(stream, hidden)
            if not (drafted.sure >= self.least).any().item():
                break
            logits = model.head(drafted.read)[:, -1]
            tokens.append(self.sampler(logits, counts + len(seen)))  # by the chances that full depth will have
            seen.append(drafted.seen)
        return tokens, seen, stream, hidden, inputs

    def keep(self, rows: Sequence[int]) -> None:
        self.replies.keep(rows)
        self.drafter.keep(rows)

    def join(self, replies: Replies) -> None:
        self.replies.join(replies)
        self.drafter.join(len(replies.current))


def joined(parts: Sequence[Any]) -> Any:
    return None if parts[0] is None else mx.concatenate(list(parts), axis=1)
