"""Replies that are continued together, one way: rows join it between its steps and leave it when they end."""

import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from agp.audit import Audit
from agp.beyond import Beyond, Said
from agp.follow import Full
from agp.models.decoder import Stream
from agp.pace import Pace
from agp.replies import Replies
from scripts.offers import Peers
from scripts.routes import RATE, Opened, way
from scripts.serve.draws import Draws, numbered
from scripts.serve.metrics import Metrics
from scripts.serve.refusal import Refused
from scripts.serve.reply import Piece, Reply


class Ways:
    """Begins them. What early promises is watched as long as this lasts, whoever asks for it."""

    def __init__(self, given: Opened | None, draws: Draws, peers: Peers | None = None):
        self.given, self.draws, self.peers = given, draws, peers
        self.audits: dict[float, Audit] = {}
        self.pace = Pace()

    def begin(self, mode: str, risk: float | None, replies: Replies) -> Any:
        if self.given is None:
            assert mode == "full", "checked when it was asked for"
            return Full(replies, self.draws)
        audit = None if risk is None else self.audits.setdefault(risk, Audit(risk, RATE))
        beyond = None if self.peers is None else self.beyond
        likeliest = lambda: not self.draws.needed
        how = {"pace": self.pace, "beyond": beyond, "likeliest": likeliest}
        return way(self.given, mode, replies, self.draws, audit=audit, **how)

    def beyond(self, tap: int) -> Beyond:
        assert self.peers is not None
        return Sparing(self.peers.beyond(tap), self.draws)

    def close(self) -> None:
        if self.peers is not None:
            self.peers.close()


class Sparing:
    """Asks for chances, which are as many as there are tokens, only while some reply needs them."""

    def __init__(self, beyond: Beyond, draws: Draws):
        self.beyond, self.draws = beyond, draws

    @property
    def same(self) -> bool:
        return self.beyond.same

    def __call__(self, stream: Stream, tokens: mx.array, rows: Sequence[int], *, logits: bool) -> Said | None:
        return self.beyond(stream, tokens, rows, logits=logits and self.draws.needed)

    def keep(self, rows: Sequence[int]) -> None:
        self.beyond.keep(rows)

    def join(self, count: int) -> None:
        self.beyond.join(count)


class Group:
    def __init__(self, begin: Callable[[Replies], Any], metrics: Metrics, note: Callable[[], None]):
        self.begin, self.metrics, self.note = begin, metrics, note
        self.way: Any = None
        self.rows: list[Reply] = []

    def join(self, replies: Replies, reply: Reply) -> None:
        self.rows.append(reply)
        if self.way is None:
            self.way = self.begin(replies)
        else:
            self.way.join(replies)

    def step(self) -> None:
        self.leave()
        if not self.rows:
            return
        started = time.perf_counter()
        left = max(reply.limit - reply.count for reply in self.rows)
        told = self.way.step(numbered([of.number for of in self.rows], [of.count for of in self.rows]), left)
        spent = time.perf_counter() - started
        sending: list[tuple[Reply, list[Piece]]] = []
        for reply, tokens in zip(self.rows, told, strict=True):
            first, tokens = not reply.count, [token._replace(seconds=spent / len(tokens)) for token in tokens]
            try:
                pieces = reply.take(tokens)
            except Exception as e:  # noqa: BLE001 - whatever one request brings about is no end of the others
                reply.refuse(failed(e))
                continue
            last = self.way.replies.model.config.num_layers - 1
            self.metrics.said(reply.asked.mode, tokens[: len(pieces)], last, reply.since if first else None)
            sending.append((reply, pieces))
        self.leave()
        self.note()  # what is told has been counted
        for reply, pieces in sending:
            reply.send(pieces)

    def leave(self) -> None:
        """Rows of replies that are over, or that nobody hears."""
        going = [at for at, reply in enumerate(self.rows) if not (reply.over or reply.gone)]
        if len(going) < len(self.rows):
            self.rows = [self.rows[at] for at in going]
            if going:
                self.way.keep(going)


def failed(error: BaseException) -> Refused:
    """Said in the server's log with all that is known, and to the client without it."""
    traceback.print_exception(error)
    return Refused(500, "the server failed at this request; its log says why")
