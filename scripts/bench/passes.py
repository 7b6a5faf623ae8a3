"""What decoding runs, pass by pass: which blocks, at how many positions, and how often heads are asked."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx

from agp.models.decoder import Decoder, Stream
from heads.bundle import Asked, Bundle, Look


class Pass(NamedTuple):
    what: str  # below or above the first tap, a look there, or the vocabulary's head
    positions: int


class Recorded:
    """Hands everything on, and keeps count."""

    def __init__(self, heads: Bundle):
        self.inner, self.passes, self.tap = heads, [], heads.taps[0]
        self.heads = heads._replace(by=self)
        self.begun, self.concepts = heads.begun, heads.concepts

    def ask(self, carried: Any, states: mx.array, place: Any, shared: Any) -> Asked:
        asked = self.inner.ask(carried, states, place, shared)

        def look() -> tuple[mx.array, Look]:
            self.passes.append(Pass("look", states.shape[2]))
            return asked.look()

        return asked._replace(look=look)

    def __enter__(self) -> "Recorded":
        decoder: Any = self.inner.decoder
        decoder.blocks, decoder.head = self.blocks(decoder, decoder.blocks), self.head(decoder.head)
        return self

    def __exit__(self, *_: object) -> None:
        decoder: Any = self.inner.decoder
        del decoder.blocks, decoder.head

    def blocks(self, decoder: Decoder, own: Callable[..., Stream]) -> Callable[..., Stream]:
        def blocks(stream: Stream, *, start: int = 0, stop: int | None = None, **how: Any) -> Stream:
            until = decoder.config.num_layers if stop is None else stop
            size, parts = stream.hidden.shape[1], {"below": start <= self.tap < until, "above": until > self.tap + 1}
            self.passes += [Pass(what, size) for what, there in parts.items() if there]
            return own(stream, start=start, stop=stop, **how)

        return blocks

    def head(self, own: Callable[[mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
        def head(normed: mx.array) -> mx.array:
            self.passes.append(Pass("head", normed.shape[1]))
            return own(normed)

        return head
