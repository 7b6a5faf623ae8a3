"""Who is let in, and what every answer carries: the token, the host a browser thinks it talks to, headers, counts."""

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agp.models.tensors import shown
from scripts.serve.metrics import Metrics
from scripts.serve.peer import is_loopback
from scripts.serve.refusal import Refused

SECRET = ("/v1/", "/metrics")  # paths that need the token, where there is one
HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-store"}


class Guard:
    """Around the application; `known` are the paths that are counted by name."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, known: Collection[str], token: str | None = None, loopback: bool = True
    ):
        self.app, self.metrics, self.known, self.loopback = app, metrics, frozenset(known), loopback
        self.bearer = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status = 499  # the client has gone before anything began

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        path = scope["path"]
        try:
            refused = self.refused(path, Headers(scope=scope))
            await (self.app if refused is None else refused.response())(scope, receive, counted)
        except Exception:
            status = 500
            raise
        finally:
            self.metrics.requests.labels(path if path in self.known else "other", status).inc()

    def refused(self, path: str, headers: Headers) -> Refused | None:
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self.loopback and not is_loopback(name.strip("[]")):  # a page elsewhere may give this address its own name
            return Refused(403, f"the host is {shown(host)}; this server answers to localhost and 127.0.0.1")
        if self.bearer is None or not path.startswith(SECRET):
            return None
        if not hmac.compare_digest(headers.get("authorization", "").encode("latin-1"), self.bearer):
            how = {"WWW-Authenticate": "Bearer", "Connection": "close"}
            return Refused(401, "the token is missing, or is another", code="invalid_api_key", headers=how)
        return None
