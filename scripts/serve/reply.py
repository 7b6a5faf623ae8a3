"""One request on its way: how far it is, what its tokens add to the answer, and why it ends."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.follow import Token
from agp.generate import make_sampler
from agp.text import UNFINISHED, Tokenizer
from agp.uplift import WHOLE
from heads.bundle import Bundle
from scripts.generate import stop_ids
from scripts.routes import described, milliseconds
from scripts.serve.asked import Asked, Served
from scripts.serve.refusal import Refused
from scripts.serve.text import Text


class Chance(NamedTuple):
    """How likely a token was."""

    text: str
    logprob: float
    others: list[tuple[str, float]]  # the likeliest, likeliest first

    @property
    def bytes(self) -> list[int] | None:
        """Of the text, where it is whole."""
        return None if UNFINISHED in self.text else list(self.text.encode())


class Piece(NamedTuple):
    """What one token adds; without a token, what was held back till the end."""

    text: str
    token: int | None
    chance: Chance | None = None
    trace: dict[str, Any] | None = None
    finish: str | None = None


Send = Callable[[list[Piece] | Refused], None]  # called by the thread that decodes


class Reply:
    """`gone` is set by whoever listens no more, from any thread; all else belongs to the thread that decodes."""

    def __init__(self, asked: Asked, served: Served, send: Send, seconds: float):
        self.asked, self.heads, self.tokenizer, self.send = asked, served.heads, served.tokenizer, send
        self.number = self.count = 0
        self.gone = self.over = False
        self.since = time.perf_counter()
        self.until = self.since + seconds
        self.sampler = make_sampler(asked.temperature, asked.top_p, asked.seed)
        self.text = Text(self.tokenizer, asked.stops)
        self.ends = {*self.tokenizer.eos_ids, *stop_ids(self.tokenizer, asked.stops)}
        self.limit = min(
            asked.max_tokens, served.longest(asked.mode) + 1 - len(asked.prompt)
        )  # the last needs no place

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.until

    @property
    def way(self) -> tuple[str, float | None]:
        """Those that go the same way can go it together."""
        return self.asked.mode, self.asked.risk

    def take(self, tokens: Sequence[Token]) -> list[Piece]:
        """As many of them as belong to it; the last piece may be the end."""
        pieces = []
        for token in tokens[: self.limit - self.count]:
            self.count += 1
            pieces.append(self.piece(token))
            if pieces[-1].finish:
                break
        self.over = pieces[-1].finish is not None
        return pieces

    def piece(self, token: Token) -> Piece:
        ended = token.id in self.ends
        added = "" if ended else self.text.push(token.id)
        finish = "stop" if ended or self.text.stopped else "length" if self.count == self.limit else None
        if finish:
            added += self.text.end()
            finish = "stop" if self.text.stopped else finish
        chance = None if self.asked.shown is None or ended else chances(self.tokenizer, token, self.asked.shown)
        trace = None
        if self.asked.trace:  # texts of a reply's tokens are its text, and a mark that ends it is no part of that
            mark = self.tokenizer.decode([token.id], special=True) if ended else ""
            trace = {"text": added or mark} | told(self.heads, token)
        return Piece(added, token.id, chance, trace, finish)

    def cut(self) -> None:
        """It ends where it is."""
        if not self.over:
            self.over = True
            self.send([Piece(self.text.end(), None, finish="length")])

    def refuse(self, why: Refused) -> None:
        if not self.over:
            self.over = True
            self.send(why)


def told(heads: Bundle | None, token: Token) -> dict[str, Any]:
    """What `described` says, and of a model alone as much of it as there is."""
    if heads is not None:
        return described(heads, token)
    alone = {"token": token.id, "route": "continue_local", "block": token.block, "regime": WHOLE}
    alone |= {"ms": milliseconds(token.seconds), "fallen": False}
    return alone | dict.fromkeys(("vitality", "mixing", "concepts", "peer"))


def chances(tokenizer: Tokenizer, token: Token, count: int) -> Chance:
    logits = np.array(token.logits.astype(mx.float32), np.float64)
    logprobs = logits - np.logaddexp.reduce(logits)
    likeliest = np.argsort(-logprobs, kind="stable")[:count].tolist()
    name = lambda id: tokenizer.decode([id], special=True)
    return Chance(name(token.id), float(logprobs[token.id]), [(name(id), float(logprobs[id])) for id in likeliest])
