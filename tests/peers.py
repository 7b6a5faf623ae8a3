"""A second host for tests: toys with a receiver, in this process or in one of their own; and liars in its place.

python -m tests.peers gemma4 127.0.0.1 9430
"""

import agp as agp  # before mlx.core, which sorted imports would put first

# isort: split
import asyncio
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from agp.beyond import within
from agp.generate import generate, greedy
from agp.packet import Answer, Refused, restored, written
from agp.peer import Again, Failed, Remote
from agp.receiver import Offer, Receiver, plain, terms
from scripts.serve.peer import STATUS, Door, listening, server
from tests import toys
from tests.toys import text

PROMPTS: list[list[int]] = [np.array(text(1, n, seed=n))[0].tolist() for n in (23, 9, 14)]
TOKEN = "a-token-that-only-two-hosts-know"


@cache
def toy(family: str, dtype: str = "float32"):
    """The same in every process."""
    mx.random.seed(3)
    model = toys.toy(family, "shares most", tie_word_embeddings=False, max_position_embeddings=512)
    model.set_dtype(getattr(mx, dtype))
    return model


def offer(model, **changes) -> Offer:
    known = {"weights": "a" * 64, "adapter": "b" * 64, "sent": model.config.num_producers - 1} | changes
    return Offer(terms(model, plain(model), **known), plain(model))


def receiver(family: str = "gemma4", kind: type[Receiver] = Receiver, **more) -> Receiver:
    model = toy(family)
    return kind(model, [offer(model)], **more)


def remote(address: str, family: str = "gemma4", **how) -> Remote:
    given = offer(toy(family))
    return Remote(address, given.terms, given.wire, toy(family).config, **{"token": TOKEN, "seconds": 20.0} | how)


@contextmanager
def serving(given: Receiver, token: str | None = TOKEN, kind=Door, **how) -> Iterator[str]:
    """Its address."""
    sock = listening("127.0.0.1", 0)
    running = server(kind(given, token, **how).routes())

    def work() -> None:
        try:
            running.run(sockets=[sock])
        finally:
            mx.clear_streams()  # a thread that ends with streams of its own may end the process

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()


def request(link: socket.socket) -> str:
    """The path of one that was read to its end."""
    head = b""
    while b"\r\n\r\n" not in head:
        if not (part := link.recv(1 << 16)):
            return ""
        head += part
    head, _, body = head.partition(b"\r\n\r\n")
    left = int(re.findall(rb"content-length: (\d+)", head.lower())[0]) - len(body)
    while left > 0:
        left -= len(link.recv(1 << 16))
    return head.split()[1].decode()


@contextmanager
def lying(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """What opens sessions, and when it is asked anything does as it likes."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        threads = []

        def one(link: socket.socket) -> None:
            with link:
                try:
                    while request(link) == "/v1/open":
                        link.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    answer(link)
                except OSError:  # it has hung up
                    pass

        def accepting() -> None:
            while True:
                try:
                    link, _ = sock.accept()
                except OSError:
                    return
                threads.append(threading.Thread(target=one, args=(link,), daemon=True))
                threads[-1].start()

        thread = threading.Thread(target=accepting)
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            thread.join()
            for thread in threads:
                thread.join()


class Near:
    """In place of a connection: every request is handed over at once, unless it is held back to arrive later."""

    def __init__(self, given: Receiver, hold: Callable[[str, int], bool] = lambda path, n: False, reason: str = "time"):
        self.receiver, self.hold, self.reason, self.count, self.held, self.late = given, hold, reason, 0, [], []

    async def post(self, path: str, body: bytes, most: int) -> bytes:
        self.count += 1
        if self.hold(path, self.count):
            self.held.append(body)
            raise Failed(self.reason, "held back")
        found = self.handed(path, body)
        while self.held:  # what is older comes after what is newer
            self.late.append(self.status(self.held.pop()))
        return found

    def status(self, body: bytes) -> int:
        try:
            self.receiver.finish(body)
        except Refused as e:
            return STATUS[type(e)]
        return 200

    def handed(self, path: str, body: bytes) -> bytes:
        try:
            return (self.receiver.open if path.endswith("open") else self.receiver.finish)(body) or b""
        except Refused as e:
            if STATUS[type(e)] in (404, 409):
                raise Again(STATUS[type(e)], str(e)) from e
            raise Failed("status", str(e)) from e


def near(given: Receiver, family: str = "gemma4", **how) -> Remote:
    made: Any = remote("http://127.0.0.1:1", family)
    made.close()
    made.link = Near(given, **how)
    made.runner = Here()
    return made


class Here:
    """Runs what never waits."""

    def run(self, work):
        return asyncio.run(work)


class Timed:
    """How long each call took, and whether it was answered."""

    def __init__(self, beyond, before: Callable[[int], None] = lambda call: None):
        self.beyond, self.before, self.seconds, self.answered = beyond, before, [], []

    @property
    def same(self) -> bool:
        return self.beyond.same

    def __call__(self, *given, **how):
        self.before(len(self.seconds))
        started = time.perf_counter()
        said = self.beyond(*given, **how)
        self.seconds.append(time.perf_counter() - started)
        self.answered.append(said is not None)
        return said


def alone(model, prompt, count, sampler=greedy) -> list[int]:
    return [step.token for step in generate(model, prompt, max_tokens=count, sampler=sampler)]


class Texts:
    """Some texts side by side at the tap, the last token of each not yet run."""

    def __init__(self, model, prompts, stop=None):
        self.model, self.cache, self.stop = model, model.make_cache(64), stop or model.config.num_producers
        longest = max(map(len, prompts)) - 1
        self.where, where = np.zeros((len(prompts), 0), int), np.arange(longest)[None].repeat(len(prompts), 0)
        ids = np.zeros(where.shape, np.int32)
        for row, prompt in enumerate(prompts):
            ids[row, longest + 1 - len(prompt) :] = prompt[:-1]
            where[row] -= longest + 1 - len(prompt)
        self.run(ids, where)

    def run(self, ids, where=None):
        if where is None:
            where = (self.where >= 0).sum(1)[:, None] + np.arange(ids.shape[1])
        self.where = np.concatenate([self.where, where], axis=1)
        told = None if len(self.where) == 1 else mx.array(self.where.astype(np.int32))
        stream = self.model.embed(mx.array(ids), end=self.where.shape[1], where=told)
        return self.model.blocks(stream, stop=self.stop, cache=self.cache)

    def forget(self, kept, of):
        """All but the first `kept` of each one's last `of` tokens."""
        places, most = self.where.shape[1], max(kept)
        self.cache.trim(of - most)
        self.where = self.where[:, : places - (of - most)]
        for row, count in zip(self.where, kept, strict=True):
            row[places - of + count :] = -1


def joined(streams, config):
    """What ran one after another, side by side."""
    hidden, inputs = (mx.concatenate([getattr(s, name) for s in streams], axis=1) for name in ("hidden", "inputs"))
    return within(streams[-1]._replace(hidden=hidden, inputs=inputs), config)


def away(model, beyond, prompts, count, sampler=greedy, drafts=2) -> list[list[int]]:
    """A few tokens drafted at the tap, then the blocks above it for all of them: there if it may be, or here."""
    texts, found, current = Texts(model, prompts), [[] for _ in prompts], np.array([p[-1] for p in prompts])
    while min(map(len, found)) < count:
        tokens, streams = [mx.array(current)], []
        draws = np.array([[len(row) + i for i in range(drafts + 1)] for row in found])
        for i in range(drafts + 1):
            streams.append(texts.run(tokens[-1][:, None]))
            tokens.append(sampler(model.unembed(streams[-1])[:, -1], draws[:, i]))
        stream, ids = joined(streams, model.config), mx.stack(tokens[:-1], axis=1)
        said = beyond(stream, ids, range(len(prompts)), logits=sampler is not greedy)
        if said is not None and said.logits is None:
            truth = said.tokens
        else:
            logits = said.logits if said else model.unembed(model.blocks(stream, start=texts.stop))
            truth = np.array(sampler(logits.flatten(0, 1), draws.reshape(-1))).reshape(ids.shape)
        right = np.cumprod(np.array(ids)[:, 1:] == truth[:, :-1], axis=1).sum(1)
        for row, told, many in zip(found, truth.tolist(), right.tolist(), strict=True):
            row += told[: many + 1]
        texts.forget((right + 1).tolist(), drafts + 1)
        current = truth[np.arange(len(truth)), right]
    return [row[:count] for row in found]


class Idle(Receiver):
    """All but the model's own work."""

    def answer(self, session, states):
        session.shared(states.position, len(states.tokens))
        restored(states, session.terms, session.wire.unpack)
        return written(Answer(states.session, states.position, states.checksum, states.tokens), session.terms)


async def echo(request: Request) -> Response:
    return Response(await request.body())


def main(family: str, host: str, port: str, kind: str = "whole") -> None:
    sock = listening(host, int(port))
    with sock:
        door = Door(receiver(family, {"whole": Receiver, "idle": Idle}[kind]), TOKEN)
        print(f"http://{host}:{sock.getsockname()[1]}", flush=True)
        server([*door.routes(), Route("/echo", echo, methods=["POST"])]).run(sockets=[sock])


if __name__ == "__main__":
    main(*sys.argv[1:])
