"""What runs the blocks above a tap in the place of this host, as decoding sees it: it answers, or this host does."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from agp.cache import KV
from agp.models.decoder import Stream
from agp.models.layout import Layout


class Cost(NamedTuple):
    """What one row's part of a call took; bytes are those of bodies, without HTTP's own."""

    sent: int
    received: int
    seconds: float


class Said(NamedTuple):
    tokens: np.ndarray  # B N: the likeliest after each position; 0 in holes
    logits: mx.array | None  # B N V, where they were asked for
    costs: Sequence[Cost]  # of each row


class Beyond(Protocol):
    @property
    def same(self) -> bool:
        """Whether it says what this host would."""
        ...

    def __call__(self, stream: Stream, tokens: mx.array, rows: Sequence[int], *, logits: bool) -> Said | None:
        """Of the newest positions, B N, of these rows; None where this host has to run the blocks itself.

        What is older is as it was: whoever takes tokens back comes here with all that stand in their places since.
        """
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Only these go on at all."""

    def join(self, count: int) -> None:
        """So many new rows go on beside them."""


def windows(config: Layout) -> dict[str, int | None]:
    """Of each kind of layer that lends keys and values; None: it forgets nothing."""
    return {config.layer_types[i]: config.window(i) for i in sorted(config.lenders)}


def within(stream: Stream, config: Layout) -> Stream:
    """Without keys and values that are too old for its positions: another host has no others, and how a sum is
    rounded hangs on how many it is of. Rows with holes stay as they are."""
    if stream.where is not None:
        return stream
    sizes, more = windows(config), stream.hidden.shape[1] - 1
    return stream._replace(shared={kind: newest(kv, sizes.get(kind), more) for kind, kv in stream.shared.items()})


def newest(kv: KV, window: int | None, more: int) -> KV:
    size = kv.keys.shape[2]
    kept = size if window is None else min(size, window + more)
    if kept == size:
        return kv
    return KV(*(a[:, :, size - kept :] for a in kv))
