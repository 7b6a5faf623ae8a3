"""The other host, as this one asks it: within a time that nothing can stretch, and never believed where it is odd.

A call ends with an answer or, when its seconds are over at the latest, without one; then this host runs the blocks
itself. What fails is tried again within these seconds. After some calls that failed none is made for a while, and then
one, to see. A session from which an answer did not come is never used again: what was sent to it may still arrive, and
take the place of what is newer.
"""

import asyncio
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import mlx.core as mx
import numpy as np

from agp.beyond import Cost, Said, windows, within
from agp.cache import KV
from agp.models.decoder import Stream
from agp.models.layout import Layout
from agp.models.tensors import clean, shown
from agp.packet import (
    HEADER,
    MOST,
    RAW,
    Answer,
    Kind,
    Prefix,
    Refused,
    States,
    Terms,
    Wire,
    answer,
    opening,
    seen,
    taken,
    written,
)

PIECE = 1 << 20  # bytes of a request, about: what has arrived need not be sent again when time is over
LONGEST_ERROR = 4096  # bytes of an answer that says what was wrong
UNOPENED, MISSING, BUSY = 404, 409, 503
AGAIN = (UNOPENED, MISSING, BUSY)
STATUS = {400: "refused", 401: "token", 412: "terms", 413: "refused"}
MEANING = {
    401: "it knows another token",
    412: "it has another model, adapter or version (there is this host, here is the peer)",
}
OPEN = "/v1/open"
HOPELESS = ("token", "terms")  # trying again would change nothing
PASSING = ("connect", "lost")  # trying again at once may help


class Failed(Exception):
    """No answer, and why: `reason` is one word, to be counted."""

    def __init__(self, reason: str, said: str):
        super().__init__(said)
        self.reason = reason


class Again(Exception):
    """The other host has done nothing, and says what it needs first."""

    def __init__(self, status: int, said: str):
        super().__init__(said)
        self.status = status


@dataclass
class Counts:
    """Bytes are those of bodies, without HTTP's own."""

    calls: int = 0
    answered: int = 0
    trips: int = 0
    sent: int = 0
    received: int = 0
    seconds: float = 0.0  # that calls took, answered or not
    failures: Counter[str] = field(default_factory=Counter)
    last: str = ""  # failure, in words


class Breaker:
    """Open after some failures in a row; then, after a rest, one call goes through to see."""

    def __init__(self, failures: int, rest: float, clock: Callable[[], float] = time.monotonic):
        self.failures, self.rest, self.clock = failures, rest, clock
        self.failed, self.until = 0, 0.0

    @property
    def lets(self) -> bool:
        return self.failed < self.failures or self.clock() >= self.until

    def told(self, fine: bool, hopeless: bool = False) -> None:
        self.failed = 0 if fine else self.failures if hopeless else self.failed + 1
        self.until = self.clock() + self.rest


def located(url: str) -> str:
    """The scheme of an address that can be one."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise ValueError(f"the peer's address is {shown(url)}; one such as http://127.0.0.1:9430 is needed")
    return parts.scheme


class Link:
    """One connection, kept alive."""

    def __init__(self, url: str, token: str | None, counts: Counts, *, seconds: float, connect: float):
        headers = {"content-type": "application/octet-stream", "accept-encoding": "identity"}
        headers |= {} if token is None else {"authorization": f"Bearer {token}"}
        self.counts = counts
        self.client = httpx2.AsyncClient(
            base_url=url,
            headers=headers,
            verify=located(url) == "https",
            trust_env=False,  # states and token go to the peer and to no proxy
            timeout=httpx2.Timeout(seconds, connect=connect),
            limits=httpx2.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=60),
        )

    async def post(self, path: str, body: bytes, most: int) -> bytes:
        """What was said to it, of so many bytes at most."""
        try:
            status, said = await self.once(path, body, most)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as e:
            self.counts.sent -= len(body)  # nothing went anywhere
            raise Failed("connect", f"no connection: {e or 'none in time'}") from e
        except httpx2.TimeoutException as e:
            raise Failed("time", f"no answer in time: {type(e).__name__}") from e
        except httpx2.TransportError as e:
            raise Failed("lost", f"the connection was lost: {type(e).__name__} {shown(str(e))}") from e
        if status == 200:
            return said
        told = f"{MEANING.get(status, 'it refuses')}: it says {status}, {clean(said.decode('utf-8', 'replace'), 300)}"
        if status == UNOPENED and path == OPEN:
            raise Failed("terms", f"no `agp peer` is at this address: it says {status}")
        raise Again(status, told) if status in AGAIN else Failed(STATUS.get(status, "status"), told)

    async def once(self, path: str, body: bytes, most: int) -> tuple[int, bytes]:
        counts, found = self.counts, bytearray()
        counts.trips += 1
        counts.sent += len(body)
        async with self.client.stream("POST", path, content=body) as response:
            most = most if response.status_code == 200 else LONGEST_ERROR
            async for part in response.aiter_raw():
                counts.received += len(part)
                found += part
                if len(found) > most:
                    raise Failed("odd", f"the answer is longer than {most} bytes")
        return response.status_code, bytes(found)


class Remote:
    """A peer, on terms that it must share. It may be asked by several threads, one after another."""

    def __init__(
        self,
        url: str,
        terms: Terms,
        wire: Wire,
        config: Layout,
        *,
        token: str | None = None,
        seconds: float = 2.0,
        connect: float = 0.5,
        tries: int = 3,
        failures: int = 3,
        rest: float = 10.0,
    ):
        """No call takes longer than `seconds`; after so many failures in a row there is a rest."""
        self.terms, self.wire, self.config, self.seconds = terms, wire, config, seconds
        self.tries, self.counts, self.breaker = tries, Counts(), Breaker(failures, rest)
        self.link = Link(url, token, self.counts, seconds=seconds, connect=connect)
        self.runner, self.lock = asyncio.Runner(loop_factory=asyncio.new_event_loop), threading.Lock()

    def beyond(self, rows: int = 1) -> "Rows":
        """Of replies that begin now."""
        return Rows(self, rows)

    def asked(self, tails: "Sequence[Tail]", logits: bool) -> "list[Told] | None":
        with self.lock:
            if not self.breaker.lets:
                return None
            mx.eval([(tail.stream.hidden, tail.shared) for tail in tails])  # this host's work is not the peer's
            self.counts.calls += 1
            started = time.perf_counter()
            try:
                found = self.runner.run(self.all(tails, logits))
            except Failed as e:
                self.counts.failures[e.reason] += 1
                self.counts.last = str(e)
                self.breaker.told(e.reason == "slow", e.reason in HOPELESS)
                return None
            finally:
                self.counts.seconds += time.perf_counter() - started
            self.counts.answered += 1
            self.breaker.told(True)
            return found

    async def all(self, tails: "Sequence[Tail]", logits: bool) -> "list[Told]":
        """A deadline for the whole of it: bytes that drip in would never let a read time out."""
        try:
            async with asyncio.timeout(self.seconds):
                return [await self.told(tail, logits) for tail in tails]
        except TimeoutError as e:
            raise Failed("time", f"no answer within {self.seconds:g} s") from e

    async def told(self, tail: "Tail", logits: bool) -> "Told":
        counts, started = self.counts, time.perf_counter()
        sent, received = counts.sent, counts.received
        found = await self.one(tail, logits)
        cost = Cost(counts.sent - sent, counts.received - received, time.perf_counter() - started)
        return Told(found, cost)

    async def one(self, tail: "Tail", logits: bool) -> Answer:
        session, pause = tail.session, 0.05
        failed = Failed("prefix", "the peer was not tried")
        for _ in range(self.tries):
            number, held = session.left()
            try:
                number = await self.open() if number is None else number
                found = await self.sent(tail, number, held, logits)
                session.number, session.held = number, held
                return found
            except Again as e:
                failed = Failed("busy" if e.status == BUSY else "prefix", str(e))
                session.number = None if e.status == UNOPENED else number
                session.held = held if e.status == BUSY else {}
            except Failed as e:
                if e.reason == "slow":
                    session.number, session.held = number, held
                if e.reason not in PASSING:
                    raise
                failed = e
            if failed.reason != "prefix":
                await asyncio.sleep(pause)
                pause *= 2
        raise failed

    async def open(self) -> int:
        number = secrets.randbits(32)
        await self.link.post(OPEN, opening(self.terms, number), 0)
        return number

    async def sent(self, tail: "Tail", number: int, held: dict[str, int], logits: bool) -> Answer:
        """In pieces, each of which `held` knows when it has arrived."""
        question, started = written(tail.states(number, logits), self.terms), time.monotonic()
        waiting, marks = b"", {}
        for prefix in tail.prefixes(number, held):
            body = written(prefix, self.terms)
            if len(waiting) + len(body) > PIECE and waiting:
                await self.link.post("/v1/finish", waiting, 0)
                held |= marks
                waiting = b""
                if time.monotonic() - started > self.seconds / 2:
                    raise Failed("slow", "what the peer lacks takes long to send; it goes on with the next call")
            waiting += body
            marks |= {kind: prefix.position + kv.keys.shape[2] for kind, kv in prefix.shared.items()}
        of, count = self.terms, len(tail.tokens)
        most = HEADER + count * (4 + of.vocabulary * getattr(mx, of.dtype).size)
        body = await self.link.post("/v1/finish", waiting + question, most)
        held |= marks
        try:
            return answer(body, of, question)
        except Refused as e:
            raise Failed("odd", f"the answer is refused: {e}") from e

    def close(self) -> None:
        self.runner.run(self.link.client.aclose())
        self.runner.close()

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Told(NamedTuple):
    answer: Answer
    cost: Cost


class Session:
    """What the peer is known to have of one reply."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.held: dict[str, int] = {}  # by kind of lender: up to which position

    def left(self) -> tuple[int | None, dict[str, int]]:
        """It, and a new one in its place."""
        number, held = self.number, self.held
        self.number, self.held = None, {}
        return number, held

    def back(self, position: int) -> None:
        """From here on it has what was taken back."""
        self.held = {kind: min(upto, position) for kind, upto in self.held.items()}


class Tail:
    """One reply at the tap: what is to be sent of it. Of its newest places some may be holes."""

    def __init__(self, remote: Remote, session: Session, stream: Stream, tokens: mx.array, row: int):
        size, places = tokens.shape[1], None if stream.where is None else np.array(stream.where[row])
        self.at = np.arange(size) if places is None else np.flatnonzero(places[-size:] >= 0)
        self.remote, self.session = remote, session
        self.tokens = mx.array(np.array(tokens, np.int32)[row, self.at])
        self.stream, self.row = stream, row
        self.end = stream.end if places is None else int(places.max()) + 1
        self.begin = self.end - len(self.tokens)
        self.shared = {kind: its(kv, row, places) for kind, kv in stream.shared.items()}
        session.back(self.begin)

    @cached_property
    def hidden(self) -> mx.array:
        """N W; copied where it lies, for a slice of it would have to be waited for."""
        return taken(seen(self.stream.hidden)[self.row, self.at].reshape(len(self.at), -1), self.stream.hidden.dtype)

    @cached_property
    def numbers(self) -> dict[str, KV]:
        """Keys and values as numpy sees them, so that a piece of them costs nothing."""
        return {kind: KV._make(map(seen, kv)) for kind, kv in self.shared.items()}

    def states(self, number: int, logits: bool) -> States:
        return States(number, self.begin, self.tokens, self.remote.wire.pack(self.hidden, self.tokens), logits=logits)

    def prefixes(self, number: int, held: Mapping[str, int]) -> Iterator[Prefix]:
        """All that the peer lacks, lenders that lack the same together."""
        spans: dict[int, list[str]] = {}
        for kind, window in windows(self.remote.config).items():
            needed = 0 if window is None else max(0, self.begin - window + 1)
            spans.setdefault(max(needed, held.get(kind, 0)), []).append(kind)
        for start, kinds in sorted(spans.items()):
            each = sum(a.nbytes // a.shape[2] for kind in kinds for a in self.shared[kind])
            step = max(1, min(PIECE // each, MOST[Kind.PREFIX]))
            for at in range(start, self.end, step):
                upto = min(at + step, self.end)
                yield Prefix(number, at, {kind: self.part(kind, at, upto) for kind in kinds})

    def part(self, kind: str, start: int, stop: int) -> KV:
        kv = self.numbers[kind]
        first = self.end - kv.keys.shape[2]
        assert start >= first, f"{kind} keys begin at {first}, and those from {start} on are needed"
        return KV(*(a[:, :, start - first : stop - first] for a in kv))


def steady(stream: Stream) -> bool:
    """Tokens of each row stand in their order, none of them twice: nothing else has a form of its own in a packet."""
    rows = [] if stream.where is None else list(np.array(stream.where))
    return all(np.array_equal(row[row >= 0], np.arange(row.max() + 1)) for row in rows)


def its(kv: KV, row: int, places: np.ndarray | None) -> KV:
    """Of one row, without holes."""
    if places is None:
        return kv if len(kv.keys) == 1 else KV(*(a[row : row + 1] for a in kv))
    at = mx.array(np.flatnonzero(places[-kv.keys.shape[2] :] >= 0))
    return KV(*(a[row : row + 1, :, at] for a in kv))


class Rows:
    """What goes beyond, for replies side by side: each is a session of its own, and all are answered or none."""

    def __init__(self, remote: Remote, rows: int):
        self.remote, self.sessions = remote, [Session() for _ in range(rows)]

    @property
    def same(self) -> bool:
        of = self.remote.terms
        return of.codec == RAW and of.regime_above == of.regime_below

    def __call__(self, stream: Stream, tokens: mx.array, rows: Sequence[int], *, logits: bool) -> Said | None:
        assert stream.pad is None and stream.documents is None, "rows that stand apart say where"
        stream = within(stream, self.remote.config)
        if not steady(stream):
            return None
        tails = [Tail(self.remote, self.sessions[row], stream, tokens, at) for at, row in enumerate(rows)]
        found = self.remote.asked(tails, logits)
        if found is None:
            return None
        ids, told = np.zeros(tokens.shape, int), None
        for row, (tail, (said, _)) in enumerate(zip(tails, found, strict=True)):
            ids[row, tail.at] = np.array(said.tokens)
            if said.logits is not None:
                told = mx.zeros((*ids.shape, said.logits.shape[-1]), said.logits.dtype) if told is None else told
                told[row, mx.array(tail.at)] = said.logits
        return Said(ids, told, [cost for _, cost in found])

    def keep(self, rows: Sequence[int]) -> None:
        self.sessions = [self.sessions[row] for row in rows]

    def join(self, count: int) -> None:
        self.sessions += [Session() for _ in range(count)]
