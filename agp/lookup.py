"""Drafts that cost nothing: what followed the same few tokens before, in this text or in others like it.

The longest ending that was seen decides. A text repeats its prompt, its names and itself more than one would think, and
all that is lost with a wrong draft is its place in a pass that reads all weights anyway.
"""

from collections.abc import Iterable, Sequence

import mlx.core as mx
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Ending = tuple[int, ...]


class Lookup:
    def __init__(self, known: dict[Ending, int] | None = None, *, longest: int = 4, least: int = 2):
        """`known` is what follows an ending in other texts; fewer than `least` tokens say too little."""
        self.known, self.longest, self.least = known or {}, longest, least
        self._seen: list[dict[Ending, int]] = []  # of each text, what followed last time
        self._upto: list[int] = []

    def __call__(self, texts: Sequence[Sequence[int]], drafts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """Of each text, with drafts after it, up to so many tokens that may come next."""
        while len(self._seen) < len(texts):
            self._seen.append({})
            self._upto.append(1)
        return [self._of(row, text, drafts[row], most) for row, text in enumerate(texts)]

    def _of(self, row: int, text: Sequence[int], drafts: Sequence[int], most: int) -> list[int]:
        seen = self._seen[row]
        for at in range(self._upto[row], len(text)):
            for ending in endings(text[max(0, at - self.longest) : at], self.least):
                seen[ending] = text[at]
        self._upto[row] = len(text)
        end, found = [*text[-self.longest :], *drafts], []
        for _ in range(most):
            told = (of.get(ending) for ending in endings(end[-self.longest :], self.least) for of in (seen, self.known))
            after = next((token for token in told if token is not None), None)
            if after is None:
                break
            found.append(after)
            end.append(after)
        return found

    def accept(self, states: mx.array | None) -> None:
        """It reads texts alone."""

    def keep(self, rows: Sequence[int]) -> None:
        """Those that it has not met yet begin at the next step."""
        met = len(self._seen)
        self._seen = [self._seen[row] if row < met else {} for row in rows]
        self._upto = [self._upto[row] if row < met else 1 for row in rows]


def endings(tokens: Sequence[int], least: int) -> list[Ending]:
    """The longest first."""
    return [tuple(tokens[at:]) for at in range(max(len(tokens) - least + 1, 0))]


def common(
    texts: Iterable[Sequence[int]], *, longest: int = 4, least: int = 2, share: float = 0.5
) -> dict[Ending, int]:
    """What follows an ending in at least this share of the cases, seen twice or more."""
    rows, found = [np.asarray(text) for text in texts], {}
    for size in range(least, longest + 1):
        windows = [sliding_window_view(row, size + 1) for row in rows if len(row) > size]
        if not windows:
            break
        seen, counts = np.unique(np.concatenate(windows), axis=0, return_counts=True)
        ending = np.cumsum(np.append(0, (seen[1:, :-1] != seen[:-1, :-1]).any(1)))  # they are in order
        order = np.lexsort((-np.arange(len(seen)), counts, ending))
        best = order[np.append(ending[order][1:] != ending[order][:-1], True)]
        kept = best[(counts[best] >= 2) & (counts[best] >= share * np.bincount(ending, counts)[ending[best]])]
        found |= {tuple(row[:-1]): row[-1] for row in seen[kept].tolist()}
    return found
