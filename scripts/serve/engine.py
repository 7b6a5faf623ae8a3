"""One thread that owns the model: it lets requests in between steps, and continues all of them side by side.

A prompt is prefilled alone, and between its chunks the others go on. Whoever goes the same way goes in one group;
groups take turns, a step each. What a reply says does not hang on the company it was in.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import mlx.core as mx

from agp.lookup import Ending
from agp.models.assistant import Assistant
from agp.models.decoder import Decoder
from agp.models.load import Loaded
from agp.replies import SLACK, Progress, Replies
from heads import clusters
from heads.bundle import Bundle
from scripts import routes
from scripts.generate import tokenizer_of
from scripts.offers import Peers
from scripts.serve.asked import Asked, Served
from scripts.serve.draws import Draws
from scripts.serve.group import Group, Ways, failed
from scripts.serve.limits import Limits
from scripts.serve.metrics import Metrics
from scripts.serve.refusal import Refused
from scripts.serve.reply import Reply, Send

CLEAR = 256  # turns after which buffers of lengths that will not come back are let go


class Gone(Exception):
    """Nobody waits for the prompt that is being read."""


class Opened(NamedTuple):
    """A run, or a model alone."""

    loaded: Loaded
    heads: Bundle | None = None
    known: dict[Ending, int] | None = None
    assistant: Assistant | None = None  # Google's drafter
    small: clusters.Head | None = None  # what proves the likeliest token with less than the whole head
    peers: Peers | None = None


class Engine:
    def __init__(self, name: str, open: Callable[[], Opened], limits: Limits, metrics: Metrics | None = None):
        """`open` is called in the thread: what MLX has not computed yet belongs to the thread that asked for it."""
        self.name, self.open, self.limits = name, open, limits
        self.metrics = metrics or Metrics()
        self.draws = Draws()
        self.ways = Ways(None, self.draws)  # until there is a model
        self.waiting: deque[Reply] = deque()
        self.coming: Reply | None = None  # whose prompt is being read
        self.groups: dict[tuple[str, float | None], Group] = {}
        self.changed = threading.Condition()
        self.requests = 0
        self.told: set[tuple[str, object]] = set()  # on stderr
        self.last: float | None = None  # when all that is left ends; None: not closed
        self.alive = True
        self.ready: Future[Served] = Future()
        self.thread = threading.Thread(target=self.work, name="model", daemon=True)

    def start(self) -> Served:
        """Returns once the model is there, or raises what kept it from being there."""
        self.thread.start()
        self.served = self.ready.result()
        return self.served

    @property
    def rows(self) -> int:
        return sum(len(group.rows) for group in list(self.groups.values()))

    def submit(self, asked: Asked, send: Send) -> Reply:
        """From any thread; `send` is called by the model's."""
        reply = Reply(asked, self.served, send, self.limits.seconds)
        with self.changed:
            if self.last is not None or not self.alive:
                raise Refused(503, "the server is going down" if self.alive else "the server has lost its model")
            if self.taken() >= self.limits.batch + self.limits.queue:
                what = f"{self.limits.batch} replies are under way and {self.limits.queue} requests wait; try later"
                raise Refused(429, what, code="rate_limit_exceeded", headers={"Retry-After": "1"})
            self.requests += 1
            reply.number = self.requests
            self.waiting.append(reply)
            self.changed.notify()
        return reply

    def taken(self) -> int:
        return self.rows + sum(not reply.gone for reply in [*self.waiting, *filter(None, [self.coming])])

    def close(self, within: float) -> None:
        """Nobody is let in any more; who is in may end within so many seconds, and is ended then."""
        with self.changed:
            ends = time.perf_counter() + within
            self.last = ends if self.last is None else min(self.last, ends)
            self.changed.notify()

    def work(self) -> None:
        try:
            served = self.opened()
        except BaseException as e:  # noqa: BLE001 - `start` raises it
            self.ready.set_exception(e)
        else:
            self.ready.set_result(served)
            while self.some():
                self.admit()
                self.turn()
        finally:
            with self.changed:
                self.alive = False
            self.end()
            self.ways.close()
            mx.clear_streams()  # a thread that ends with streams of its own may end the process

    def opened(self) -> Served:
        loaded, heads, known, assistant, small, peers = self.open()
        if mx.metal.is_available():  # keep the weights from being paged out between tokens
            mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
        given = None if heads is None else routes.Opened(loaded, heads, known or {}, assistant, small)
        self.model, self.ways, self.turns = loaded.model, Ways(given, self.draws, peers), 0
        config = loaded.config
        return Served(self.name, tokenizer_of(loaded), config.max_position_embeddings, config.vocab_size, heads)

    def some(self) -> bool:
        """There is something to do; waits for it. False: there will be nothing more."""
        with self.changed:
            self.note()
            while not self.waiting and not self.groups and self.last is None:
                self.changed.wait()
        if self.closed:
            self.end()
        return bool(self.waiting or self.groups)

    @property
    def closed(self) -> bool:
        """Whoever is still in is out of time."""
        return self.last is not None and time.perf_counter() >= self.last

    def admit(self) -> None:
        """One at a time, so that nobody who is in waits long."""
        self.coming = reply = self.next()
        if reply is None:
            return
        replies = self.read(reply)
        self.coming = None
        if replies is None:
            return
        group = self.groups.get(reply.way)
        if group is None:
            begin = lambda replies: self.ways.begin(*reply.way, replies)
            group = self.groups[reply.way] = Group(begin, self.metrics, self.note)
        self.draws.add(reply.number, reply.sampler, reply.asked.shown is not None)
        self.guarded(reply.way, lambda: group.join(replies, reply))

    def read(self, reply: Reply) -> Replies | None:
        try:
            return begun(self.model, reply, self.between(reply))
        except Gone:
            return None
        except Exception as e:  # noqa: BLE001 - it is said, and the others go on
            reply.refuse(failed(e))
            return None

    def next(self) -> Reply | None:
        """Of those who still wait for an answer and may do so, the first, if there is room."""
        with self.changed:
            late = [reply for reply in self.waiting if reply.late and not reply.gone]
            self.waiting = deque(reply for reply in self.waiting if not (reply.late or reply.gone))
            found = self.waiting.popleft() if self.waiting and self.rows < self.limits.batch else None
        for reply in late:
            reply.refuse(Refused(503, f"no turn came within {self.limits.seconds:g} seconds; try later"))
        return found

    def between(self, reply: Reply) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            if reply.late or self.closed:
                what = "the server is going down" if self.closed else "the time ran out while the prompt was read"
                reply.refuse(Refused(503, what))
            if reply.gone or reply.over:
                raise Gone
            if done < total - 1:
                self.turn()

        return progress

    def turn(self) -> None:
        """A step of each group."""
        for way, group in list(self.groups.items()):
            for reply in group.rows:
                if reply.late:
                    self.cut(reply, f"it took longer than {self.limits.seconds:g} seconds")
            before = list(group.rows)
            self.guarded(way, group.step)
            for reply in before:
                if reply.over or reply.gone:
                    self.draws.remove(reply.number)
            if not group.rows:
                del self.groups[way]
        self.note()
        self.turns += 1
        if self.turns % CLEAR == 0:
            mx.clear_cache()

    def guarded(self, way: tuple[str, float | None], act: Callable[[], None]) -> None:
        """What fails for a whole group ends that group; the others go on."""
        try:
            act()
        except Exception as e:  # noqa: BLE001 - it is said, and the others go on
            group = self.groups[way]
            for reply in group.rows:
                reply.refuse(failed(e))
                self.draws.remove(reply.number)
            group.rows = []

    def note(self) -> None:
        asked = {} if self.ways.peers is None else self.ways.peers.asked
        self.metrics.stands(len(self.waiting), self.rows, self.ways.audits, asked)
        self.say()

    def say(self) -> None:
        """What clients are not told, once: a promise that was broken, and a peer that fails, by why."""
        for risk, audit in self.ways.audits.items():
            if audit.broken:
                what = (
                    f"early at a risk of {risk:g} goes on lossless: {audit.differed} of {audit.looked} tokens differed"
                )
                self.once(("early", risk), what)
        for of in [] if self.ways.peers is None else self.ways.peers.asked.values():
            for reason in of.counts.failures:
                self.once(("peer", reason), f"the peer did not answer, and its part is done here: {of.counts.last}")

    def once(self, key: tuple[str, object], what: str) -> None:
        if key not in self.told:
            self.told.add(key)
            print(f"agp serve: {what}", file=sys.stderr, flush=True)

    def cut(self, reply: Reply, why: str) -> None:
        if not reply.over:
            print(f"agp serve: a reply ends after {reply.count} tokens: {why}", file=sys.stderr, flush=True)
        reply.cut()

    def end(self) -> None:
        """All that is under way ends where it is, and what waits is refused."""
        with self.changed:
            waiting, self.waiting = [*self.waiting, *filter(None, [self.coming])], deque()
            groups, self.groups = self.groups, {}
        for group in groups.values():
            for reply in group.rows:
                self.cut(reply, "the server is going down")
        for reply in waiting:
            reply.refuse(Refused(503, "the server is going down"))


def begun(model: Decoder, reply: Reply, progress: Progress) -> Replies:
    """Its prompt alone."""
    return Replies.begun(model, [reply.asked.prompt], slack=SLACK, progress=progress)
