"""A stand-in for `agp serve`: the real page, and replies as the server streams them; a word of the prompt says which.

It says what a real run of the smallest model cannot be made to say: markup, half characters, peers, faults.
"""

import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "scripts" / "serve" / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADS = {
    "blocks": 12,
    "taps": [4, 6, 8, 10],
    "risks": ["0.01", "0.02"],
    "modes": ["full", "early", "lossless"],
    "peer": True,
    "tokens": 100,
}
PROSE = (
    "Here| is| the| list|,| turned| around|:|\n|c|,| b|,| a|.|\n|\n|Each| letter| kept| its| own| comma|,"
    "| and| nothing| else| was| changed| on| the| way|."
).split("|")
DIFFERS = 17  # where early says something else
DRIFTS = 9  # where it is found out
BLOCKS = (4, 6, 4, 8, 11, 10, 4, 6, 11, 4, 8)
MARKUP = "<script>window.ran = true</script><img src=x onerror='window.ran = true'>"

Token = dict[str, Any]


def token(at: int, text: str, mode: str) -> Token:
    block = 11 if mode == "full" else BLOCKS[at % len(BLOCKS)]
    last = block == 11
    told: Token = {"text": text, "token": sum(map(ord, text)), "route": "continue_local", "block": block}
    told |= {"vitality": None, "concepts": None, "ms": 12.5 if last else 3.0 + block / 2}
    if mode == "full":
        return told
    if not last:
        told |= {"route": "revive_local", "vitality": (0.97, 0.83, 0.58, 0.91, 0.74)[at % 5]}
        told["mixing"] = ([1.0], [0.7, 0.3], [0.6, 0.3, 0.1])[at % 3]
    if block >= 8:
        told["concepts"] = ["task.reverse", "delimiter.comma"] if at % 2 else ["task.reverse"]
    if at % 13 == 8:
        told |= {"route": "escalate", "peer": {"ms": 21.5, "sent": 3184, "received": 512}}
    return told


def reply(mode: str) -> list[Token]:
    words = [*PROSE]
    if mode == "early":
        words[DIFFERS] = "Every"
    return [token(at, text, mode) for at, text in enumerate(words)]


def chunks(prompt: str, mode: str) -> Iterator[tuple[str, list[Token]]]:
    if "markup" in prompt:
        yield MARKUP, [token(0, MARKUP, mode)]
    elif "half" in prompt:  # of a character: its bytes are tokens, its text comes with the last of them
        yield "", [token(0, "", mode)]
        yield "é!", [token(1, "é", mode), token(2, "!", mode)]
        yield " held", []
    elif "slow" in prompt:
        for at in range(1000):
            time.sleep(0.02)
            yield f" {at}", [token(at, f" {at}", mode)]
    else:
        for at, told in enumerate(reply(mode)):
            time.sleep(0.002)
            yield told["text"], [told | {"fallen": mode == "early" and "drift" in prompt and at >= DRIFTS}]
        yield "", [token(len(PROSE), "<turn|>", mode)]


class Handler(BaseHTTPRequestHandler):
    def __init__(self, stand: "Stand", *given: Any):
        self.stand = stand
        super().__init__(*given)

    def log_message(self, format: str, *args: Any):
        pass

    def do_GET(self):
        if self.path == "/v1/models" and self.stand.bearer not in (None, self.headers["Authorization"]):
            self.whole(401, {"error": {"message": "the token is missing, or is another"}})
        elif self.path == "/v1/models":
            self.whole(
                200,
                {"data": [{"id": "tiny", "object": "model"} | {"agp": HEADS if self.stand.heads else {"tokens": 100}}]},
            )
        elif self.path in FILES:
            name, kind = FILES[self.path]
            self.send(200, kind, (PAGE / name).read_bytes())
        else:
            self.send(204, "text/plain", b"")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.stand.asked.append(body)
        prompt = body["messages"][-1]["content"]
        if "fail" in prompt:
            self.whole(400, {"error": {"message": f"max_tokens is {body['max_tokens']}; <b>9</b> is the most"}})
            return
        try:
            self.stream(prompt, body)
        except (BrokenPipeError, ConnectionResetError):
            self.stand.left.set()

    def stream(self, prompt: str, body: dict[str, Any]):
        self.head(200, "text/event-stream")
        agp = body.get("agp", {})
        for at, (content, tokens) in enumerate(chunks(prompt, agp.get("mode", "full"))):
            if "break" in prompt and at == 5:
                return
            choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
            self.event({"choices": [choice | ({"agp": tokens} if agp.get("trace") else {})]})
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, told: dict[str, Any]):
        self.wfile.write(f"data: {json.dumps(told)}\n\n".encode())
        self.wfile.flush()

    def whole(self, code: int, told: dict[str, Any]):
        self.send(code, "application/json", json.dumps(told).encode())

    def send(self, code: int, kind: str, body: bytes):
        self.head(code, kind)
        self.wfile.write(body)

    def head(self, code: int, kind: str):
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Security-Policy", "default-src 'self'")
        self.end_headers()


class Stand(ThreadingHTTPServer):
    """On a free port of this machine alone; `asked` holds what it was asked, `left` says that a reader went away."""

    daemon_threads = True

    def __init__(self, heads: bool = True, token: str | None = None):
        self.heads, self.asked, self.left = heads, [], threading.Event()
        self.bearer = None if token is None else f"Bearer {token}"
        super().__init__(("127.0.0.1", 0), partial(Handler, self))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def __enter__(self) -> "Stand":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *raised: Any):
        self.shutdown()
        self.server_close()
