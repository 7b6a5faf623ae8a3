"""The paths of OpenAI's API that are served here, and what is said to who asks for another."""

import asyncio
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agp.models.tensors import clean, shown
from scripts.routes import MODES
from scripts.serve import asked, metrics, page
from scripts.serve.answer import Answer
from scripts.serve.engine import Engine
from scripts.serve.guard import Guard
from scripts.serve.peer import TooLong, whole
from scripts.serve.refusal import Refused
from scripts.serve.shapes import SHAPES

SECONDS = 30.0  # for a body to come
JSON = "application/json"


class Api:
    def __init__(self, engine: Engine):
        self.engine, self.served, self.limits = engine, engine.served, engine.limits

    def routes(self) -> list[Route]:
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completion, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
        ]

    async def chat(self, request: Request) -> Any:
        return await self.answer("chat", request)

    async def completion(self, request: Request) -> Any:
        return await self.answer("completion", request)

    async def answer(self, kind: str, request: Request) -> Answer:
        body = await self.body(request)
        try:  # beside the loop: a long prompt takes its time to be cut into tokens
            what, how = await asyncio.to_thread(asked.read, kind, body, self.served, self.limits)
        except RecursionError as e:
            raise Refused(400, "the body is nested too deep") from e
        return Answer(self.engine, what, how, SHAPES[kind](self.served.name, len(what.prompt), what.trace))

    async def body(self, request: Request) -> bytes:
        most, closing = self.limits.body, {"Connection": "close"}  # the rest of it is not waited for
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != JSON:
            raise Refused(415, f"Content-Type is {shown(kind)}; {JSON} is needed", headers=closing)
        too_long = Refused(413, f"the body is longer than {most} bytes, the most that is taken", headers=closing)
        if int(said if (said := request.headers.get("content-length", "0")).isdecimal() else 0) > most:
            raise too_long
        try:
            async with asyncio.timeout(SECONDS):
                return await whole(request, most)
        except TooLong as e:
            raise too_long from e
        except TimeoutError as e:
            raise Refused(408, f"the body took longer than {SECONDS:g} seconds", headers=closing) from e
        except ClientDisconnect as e:
            raise Refused(400, "the body ended too early", headers=closing) from e

    def listed(self) -> dict[str, Any]:
        served, longest = self.served, {"tokens": self.limits.tokens}
        found = {"id": served.name, "object": "model", "created": 0, "owned_by": "agp"}
        if served.heads is None:
            return found | {"agp": longest}
        heads, limits = served.heads, served.heads.limits["revive"]
        about = {"blocks": heads.decoder.config.num_layers, "taps": list(heads.taps), "modes": list(MODES)}
        about |= {"peer": self.engine.ways.peers is not None} | longest
        return found | {"agp": about | {"risks": [risk for risk, limit in limits.items() if limit is not None]}}

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self.listed()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.served.name:
            what = f"there is no model {shown(name)} here; {self.served.name} is"
            raise Refused(404, what, param="model", code="model_not_found")
        return JSONResponse(self.listed())

    async def metrics(self, request: Request) -> Response:
        return Response(self.engine.metrics.text(), headers={"Content-Type": metrics.TYPE})

    async def health(self, request: Request) -> Response:
        alive = self.engine.alive and self.engine.last is None
        return JSONResponse({"status": "ok" if alive else "going down"}, 200 if alive else 503)


async def refused(request: Request, error: Any) -> Response:
    return error.response()


async def unknown(request: Request, error: Any) -> Response:
    """Paths and methods that are not here."""
    assert isinstance(error, HTTPException)
    what, code = f"{clean(request.method)} {clean(request.url.path)}: {error.detail}", "unknown_url"
    if error.status_code == 405:
        what, code = f"{what}; {(error.headers or {}).get('Allow', 'another method')} is", "method_not_allowed"
    return Refused(error.status_code, what, code=code, headers=error.headers).response()


async def broken(request: Request, error: Exception) -> Response:
    return Refused(500, "the server failed at this request; its log says why").response()


def application(engine: Engine, token: str | None = None, loopback: bool = True) -> Starlette:
    routes = [*Api(engine).routes(), *page.routes()]
    known = [route.path for route in routes if "{" not in route.path]
    guard = Middleware(Guard, metrics=engine.metrics, known=known, token=token, loopback=loopback)
    handlers = {Refused: refused, HTTPException: unknown, Exception: broken}
    app = Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app
