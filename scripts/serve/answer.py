"""One answer on its way out, whole or streamed; a client that goes away is noticed at once."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from scripts.serve.asked import Asked, How
from scripts.serve.engine import Engine
from scripts.serve.refusal import Refused
from scripts.serve.reply import Piece
from scripts.serve.shapes import Shape

PATIENCE = 30.0  # seconds that a client may read on once its reply has ended


class Answer:
    """An ASGI response. The first tokens are waited for before it begins, so that a refusal has a status of its own."""

    def __init__(self, engine: Engine, asked: Asked, how: How, shape: Shape):
        self.how, self.shape, self.loop = how, shape, asyncio.get_running_loop()
        self.heard: asyncio.Queue[list[Piece] | Refused] = asyncio.Queue()
        self.seconds = engine.limits.seconds + PATIENCE
        self.reply = engine.submit(asked, self.hear)

    def hear(self, what: list[Piece] | Refused) -> None:
        """In the thread that decodes."""
        with suppress(RuntimeError):  # the loop has ended, and nobody hears
            self.loop.call_soon_threadsafe(self.heard.put_nowait, what)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        told = self.stream(send) if self.how.stream else self.whole(scope, receive, send)
        work, gone = asyncio.ensure_future(told), asyncio.ensure_future(left(receive))
        try:
            async with asyncio.timeout(self.seconds):
                await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        except TimeoutError:
            return  # a client that does not read
        finally:
            self.reply.gone = True
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Steps, and all that have come together while the client read."""
        while True:
            found = [await self.heard.get()]
            while not self.heard.empty():
                found.append(self.heard.get_nowait())
            ready = [piece for of in found if isinstance(of, list) for piece in of]
            if ready:
                yield ready
            if isinstance(found[-1], Refused):
                raise found[-1]
            if ready[-1].finish:
                return

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = [piece async for step in self.pieces() for piece in step]
        await JSONResponse(self.shape.whole(pieces))(scope, receive, send)

    async def stream(self, send: Send) -> None:
        begun, finish = False, "stop"
        try:
            async for pieces in self.pieces():
                if not begun:
                    await send(start())
                    begun = True
                    await self.event(send, self.shape.first())
                finish = pieces[-1].finish or finish
                chunk = self.shape.chunk(pieces)
                if self.shape.trace or any(piece.text or piece.chance for piece in pieces):
                    await self.event(send, chunk)
            await self.event(send, self.shape.last(finish))
            await self.event(send, self.shape.used() if self.how.usage else None)
        except Refused as refused:
            if not begun:
                raise
            await self.event(send, refused.body)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def event(self, send: Send, what: dict[str, Any] | None) -> None:
        if what is not None:
            line = f"data: {json.dumps(what, ensure_ascii=False, separators=(',', ':'))}\n\n"
            await send({"type": "http.response.body", "body": line.encode(), "more_body": True})


def start() -> dict[str, Any]:
    headers = {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"}
    return {
        "type": "http.response.start",
        "status": 200,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }


async def left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
