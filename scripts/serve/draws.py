"""One sampler for rows that each have their own: the high bits of a row's draw say which."""

import mlx.core as mx
import numpy as np

from agp.generate import Sampler, greedy

BITS = 32  # of a draw's number within its request


class Draws:
    def __init__(self):
        self.own: dict[int, Sampler] = {}  # of requests that are not greedy
        self.shown: set[int] = set()  # requests that are told how likely tokens were

    @property
    def needed(self) -> bool:
        """More than the likeliest tokens."""
        return bool(self.own or self.shown)

    def add(self, request: int, sampler: Sampler, shown: bool = False) -> None:
        if sampler is not greedy:
            self.own[request] = sampler
        if shown:
            self.shown.add(request)

    def remove(self, request: int) -> None:
        self.own.pop(request, None)
        self.shown.discard(request)

    def __call__(self, logits: mx.array, draws) -> mx.array:
        draws = np.asarray(draws)
        ids, requests = greedy(logits, draws), draws >> BITS
        for request in sorted(self.own.keys() & set(requests.tolist())):
            at = np.flatnonzero(requests == request)
            rows = mx.array(at)
            ids[rows] = self.own[request](logits[rows], draws[at] & (2**BITS - 1))
        return ids


def numbered(requests: list[int], counts: list[int]) -> np.ndarray:
    return (np.array(requests, np.int64) << BITS) + np.array(counts, np.int64)
