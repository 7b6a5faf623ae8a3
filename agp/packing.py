"""Examples to batches: packed side by side or by like length, from weighted sources, as a function of the step."""

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from agp.supervise import Example

MULTIPLE = 32  # lengths are rounded up to one, so that few shapes are compiled
ROUND = 1000  # draws in which every source gets its share


Row = list[Example]  # packed side by side


class Batch(NamedTuple):
    tokens: np.ndarray  # B L
    documents: np.ndarray  # B L: tokens see those of their own number; 0 is padding
    where: np.ndarray  # S: places, counted through the whole batch, whose next token is learned
    targets: np.ndarray  # S
    weights: np.ndarray  # S: 1, and 0 where it is filled up


def pack(examples: Sequence[Example], length: int, seed: int) -> list[list[int]]:
    """Which examples share a row of `length` tokens: the longest first, each where it leaves the least room."""
    shuffled = np.random.default_rng([seed, 0]).permutation(len(examples))
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # room left and row, in order
    for index in sorted(map(int, shuffled), key=lambda i: -len(examples[i].ids)):
        size = len(examples[index].ids)
        at = bisect_left(rooms, (size, -1))
        room, row = rooms.pop(at) if at < len(rooms) else (length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        insort(rooms, (room - size, row))
    return rows


def alike(examples: Sequence[Example], together: int, seed: int) -> list[list[int]]:
    """Rows of one example each; those that make a batch are of like length, and batches come in a shuffled order."""
    rng = np.random.default_rng([seed, 1])
    sizes = np.array([len(e.ids) for e in examples]) + rng.random(len(examples))
    order = np.argsort(sizes)
    groups = [order[at : at + together] for at in range(0, len(order), together)]
    return [[int(i)] for g in rng.permutation(len(groups)) for i in groups[g]]


class Stream:
    """One source's rows, epoch after epoch, shuffled anew in each; those of like length stay together."""

    def __init__(self, examples: Sequence[Example], length: int, packed: bool, together: int, seed: int):
        if not examples:
            raise ValueError("a source has no rows left to train on")
        self.examples, self.together, self.seed = examples, 1 if packed else together, seed
        self.rows = pack(examples, length, seed) if packed else alike(examples, together, seed)

    def all_rows(self) -> list[Row]:
        return [[self.examples[i] for i in row] for row in self.rows]

    def row(self, number: int) -> Row:
        epoch, at = divmod(number, len(self.rows))
        group, place = divmod(at, self.together)
        whole = len(self.rows) // self.together
        if group < whole:  # what is left over by whole groups comes last in every epoch
            group = np.random.default_rng([self.seed, 2, epoch]).permutation(whole)[group]
        return [self.examples[i] for i in self.rows[group * self.together + place]]


class Mixture:
    """Rows of several sources, each as often as its weight says, spread evenly."""

    def __init__(self, streams: Mapping[str, Stream], weights: Mapping[str, float], together: int, seed: int):
        self.streams, self.together = list(streams.values()), together
        shares = np.array([weights[name] for name in streams], float)
        ends = np.round(np.cumsum(shares / shares.sum()) * ROUND).astype(int)
        drawn = np.repeat(np.arange(len(shares)), np.diff(ends, prepend=0))
        self.drawn = np.random.default_rng([seed, 3]).permutation(drawn)
        if never := [name for k, name in enumerate(streams) if not (self.drawn == k).any()]:
            raise ValueError(
                f"the weights of {', '.join(never)} are below a {2 * ROUND}th of all: they would never be drawn"
            )
        self.before = [np.cumsum(self.drawn == k) - (self.drawn == k) for k in range(len(shares))]

    def row(self, number: int) -> Row:
        """Rows that belong to one batch come from one source, so that they can be of like length."""
        group, place = divmod(number, self.together)
        turn, at = divmod(group, ROUND)
        k = self.drawn[at]
        earlier = turn * int((self.drawn == k).sum()) + int(self.before[k][at])
        return self.streams[k].row(earlier * self.together + place)


def assemble(rows: Sequence[Row], length: int | None = None) -> Batch:
    """One array of all rows; padded on the right, where nothing attends to it."""
    longest = max(sum(len(e.ids) for e in row) for row in rows)
    width = -(-longest // MULTIPLE) * MULTIPLE if length is None else length
    tokens, documents = (np.zeros((len(rows), width), np.int32) for _ in range(2))
    learned = np.zeros((len(rows), width), bool)
    for r, row in enumerate(rows):
        ends = list(accumulate(len(e.ids) for e in row))
        for number, (end, e) in enumerate(zip(ends, row, strict=True), 1):
            begin = end - len(e.ids)
            tokens[r, begin:end], documents[r, begin:end] = e.ids, number
            learned[r, begin : end - 1] = e.learned[1:]  # of the token after each
    where = np.flatnonzero(learned)
    filled = np.zeros(-(-max(len(where), 1) // MULTIPLE) * MULTIPLE, np.int32)
    targets, weights = filled.copy(), filled.astype(np.float32)
    filled[: len(where)], targets[: len(where)], weights[: len(where)] = where, tokens.reshape(-1)[where + 1], 1
    return Batch(tokens, documents, filled, targets, weights)


def drawn(source: Mixture, rows: int, accumulate: int, rank: int = 0, size: int = 1) -> Callable[[int, int], list[Row]]:
    """What a host trains on in a micro-batch of a step: its share of the rows that all hosts draw together."""

    def of(step: int, micro: int) -> list[Row]:
        first = ((step - 1) * accumulate + micro) * rows * size
        return [source.row(first + rank + k * size) for k in range(rows)]

    return of
