"""The page at /: three files, nothing else, and nothing that a browser could be talked into running."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from scripts.serve.refusal import Refused

PAGE = Path(__file__).parent / "page"
TYPES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"


def routes(folder: Path = PAGE) -> list[Route]:
    def at(path: str, name: str) -> Route:
        async def sent(request: Request) -> Response:
            file = folder / name
            if file.is_file():
                return Response(file.read_bytes(), media_type=TYPES[name], headers={"Content-Security-Policy": POLICY})
            if path == "/":
                return PlainTextResponse("There is no page here; /v1/chat/completions answers.\n")
            raise Refused(404, f"{name} is not here")

        return Route(path, sent, methods=["GET"])

    return [at("/", "index.html"), *(at(f"/{name}", name) for name in TYPES)]
