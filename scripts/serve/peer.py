"""The receiver behind HTTP: who may ask, how much, and for how long.

    POST /v1/open     an OPENING
    POST /v1/finish   PREFIX frames and perhaps STATES; the answer is an ANSWER, or nothing

400 what is no packet; 401 no token, or another; 404 no such session; 409 prefix missing, or the session's number taken;
412 the hosts differ; 413 too long; 415 of another type, which no web page can send; 503 busy; 504 its body took too
long. What is wrong is said in one line of text.
"""

import asyncio
import hmac
import socket
from collections.abc import Callable
from ipaddress import ip_address

import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from agp.packet import LONGEST, Refused
from agp.receiver import Missing, Receiver, Taken, Unlike, Unopened

TYPE = "application/octet-stream"
SECONDS = 20.0  # for a request, from its headers to the end of its body
CONNECTIONS = 32  # at once
STATUS = {Unlike: 412, Unopened: 404, Missing: 409, Taken: 409, Refused: 400}


class TooLong(Exception):
    """A body of more bytes than are taken."""


class Door:
    """One question is worked on at a time, and whoever comes meanwhile waits: handing it to another thread would take
    a fifth of the time in which an empty request is answered, and the model could do no more. What others are sending
    waits too, beyond what their connection holds."""

    def __init__(self, receiver: Receiver, token: str | None, *, seconds: float = SECONDS, longest: int = LONGEST):
        self.receiver, self.seconds, self.longest = receiver, seconds, longest
        self.bearer = None if token is None else f"Bearer {token}".encode()

    def routes(self) -> list[Route]:
        def at(path: str, work: Callable[[bytes], bytes | None]) -> Route:
            async def answered(request: Request) -> Response:
                return await self.answered(request, work)

            return Route(path, answered, methods=["POST"])

        return [at("/v1/open", self.receiver.open), at("/v1/finish", self.receiver.finish)]

    async def answered(self, request: Request, work: Callable[[bytes], bytes | None]) -> Response:
        if self.bearer is not None:
            given = request.headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, self.bearer):  # which takes as long however much of it is right
                return said(401, "the token is missing, or is another")
        if request.headers.get("content-type") != TYPE:
            return said(415, f"a body of {TYPE} is needed")
        try:
            async with asyncio.timeout(self.seconds):
                body = await whole(request, self.longest)
            done = work(body)
        except TimeoutError:
            return said(504, f"it took longer than {self.seconds:g} s")
        except TooLong:
            return said(413, f"the body is longer than {self.longest} bytes")
        except ClientDisconnect:
            return said(400, "the body ended too early")
        except Refused as e:
            return said(STATUS[type(e)], str(e), close=False)
        return Response(done or b"", media_type=TYPE, background=BackgroundTask(self.settle))

    async def settle(self) -> None:
        """On the loop, once the answer is sent: a plain function would be called in a thread of its own."""
        self.receiver.settle()


def said(status: int, line: str, close: bool = True) -> Response:
    """The rest of a body that nobody reads is not waited for."""
    return PlainTextResponse(line, status, {"connection": "close"} if close else None)


async def whole(request: Request, longest: int) -> bytes:
    """Counted as it comes: what a header says of its length may be wrong, or missing."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > longest:
            raise TooLong
    return bytes(found)


def server(routes: list[Route]) -> uvicorn.Server:
    quiet = {"log_config": None, "log_level": "critical", "access_log": False, "server_header": False}
    plain = {"loop": "asyncio", "http": "h11", "ws": "none", "lifespan": "off", "proxy_headers": False}
    lasting = {"timeout_keep_alive": 120, "timeout_graceful_shutdown": 5, "limit_concurrency": CONNECTIONS}
    settings: dict = {**quiet, **plain, **lasting, "date_header": False}
    return uvicorn.Server(uvicorn.Config(Starlette(routes=routes), **settings))


def listening(host: str, port: int) -> socket.socket:
    """Here and not in uvicorn, so that a port in use is said in a line."""
    if not 0 <= port < 1 << 16:
        raise ValueError(f"there is no port {port}; those from 0 (any that is free) to 65535 there are")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.socket(
            family, socket.SOCK_STREAM, socket.IPPROTO_TCP
        )  # named, or asyncio leaves Nagle's delay on
    except OSError as e:
        raise ValueError(f"{host} is no address: {e.strerror}; give another --host") from e
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen()
    except OSError as e:
        sock.close()
        raise ValueError(f"cannot listen at {host}, port {port}: {e.strerror}; give another --host or --port") from e
    return sock


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name, which may come to mean another address
        return host == "localhost"
