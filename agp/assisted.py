"""Drafts by Google's drafter, of rows of which nothing was said before that would go on by itself.

What repeats is asked first, for it costs nothing; each draft of the drafter is a pass through its blocks, and a matrix
as large as its vocabulary where it scores all of it. It goes on from the state that full depth chose a row's last token
from, so it says nothing of rows that have none: those that joined since, and all where the blocks above ran elsewhere.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from agp.cache import KV
from agp.layers import Place
from agp.lossless import Proposer
from agp.models.assistant import Assistant, newest
from agp.replies import Replies


class Assisted:
    def __init__(self, assistant: Assistant, replies: Replies, lookup: Proposer):
        self.assistant, self.replies, self.lookup = assistant, replies, lookup
        self.states: list[mx.array | None] = []  # of each row, 1 D; later rows have none yet
        self.begun: tuple[Place, dict[str, KV]] | None = None  # where all drafts of this round are made

    def __call__(self, texts: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """One fewer than there may be, so that the tap can look at them, and go on where it knows better."""
        found, count = self.lookup(texts, drafts, most), most - 1
        known = [row for row, state in enumerate(self.states) if state is not None]
        if not known or count < 1:
            return found
        if not any(drafts):
            self.begun = newest(self.replies.cache, self.replies.model.config, self.replies.told)
        if asked := [row for row in known if not found[row]]:
            said = self.chain([[text[-1], *more] for text, more in zip(texts, drafts, strict=True)], count)
            for row in asked:
                found[row] = said[row]
        return found

    def chain(self, fed: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """So many tokens after those that each row is fed, the first of which was chosen by full depth."""
        assert self.begun is not None, "a round begins without drafts"
        longest = max(map(len, fed))
        given = mx.array([[*of, *[-1] * (longest - len(of))] for of in fed])
        state, token, said = self.state(len(fed)), given[:, :1], []
        for at in range(1, longest + count):
            told, state = self.assistant.step(self.replies.model.embed_vectors(token), state, *self.begun)
            said.append(token := told.likeliest)
            if at < longest:
                fixed = given[:, at : at + 1]
                token = mx.where(fixed < 0, token, fixed)
        ids = np.array(mx.concatenate(said, axis=1)).tolist()
        return [row[len(of) - 1 :][:count] for row, of in zip(ids, fed, strict=True)]

    def state(self, rows: int) -> mx.array:
        """B 1 D; what is said of rows without one is not used."""
        known = [*self.states, *[None] * (rows - len(self.states))]
        none = mx.zeros_like(next(state for state in known if state is not None))
        return mx.stack([none if state is None else state for state in known])

    def accept(self, states: mx.array | None) -> None:
        self.lookup.accept(states)
        self.states, self.begun = [] if states is None else list(states), None

    def keep(self, rows: Sequence[int]) -> None:
        self.lookup.keep(rows)
        met = len(self.states)
        self.states = [self.states[row] if row < met else None for row in rows]
