"""Both hosts on this machine: a peer, a server that hands work to it, its page, and a short talk in the terminal.

agp demo
agp demo runs/tiny3n --no-browser
agp demo --once --no-browser     # ends after the talk, with 1 if something was not as promised

Each message is answered at full depth, lossless, and early where the run promises something for a risk. A token stands
with the block that it left after, and with ^ where the peer ran those above. Ctrl-C or SIGTERM ends it, and both hosts.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import webbrowser
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import httpx2

from scripts.asked import some_path
from scripts.processes import STARTER
from scripts.routes import whole
from scripts.tokens import fresh

USUAL = Path("runs/tiny")
TALK = (
    "Write this list backwards.\nj n f m",
    "What does this print?\nx = 9\ne = 7\nx = x * 7\nprint(x)",
    "Unreachable:\ndef x(a):\n    a = a + 4\n    if a > 8: return 8\n    return a\n    if a > 9: return 9",
)
LONGEST = 48  # tokens of an answer
PATIENCE = 120.0  # seconds for an answer
LAST = 10.0  # seconds for a host to end in
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")  # without one, a browser of the terminal would take it over


class Ended(OSError):
    """A host is gone that nobody ended."""


class Host:
    """`agp VERB` as a process of its own; what it says is kept, as far as it may be wanted."""

    def __init__(self, verb: str, words: Sequence[str]):
        env = {name: value for name, value in os.environ.items() if name != "AGP_TOKEN"}
        env |= {"AGP_QUIET": "1", STARTER: str(os.getpid())}
        command = [sys.executable, "-m", "scripts.cli", verb, *words]
        self.name, self.said = f"agp {verb}", deque[str](maxlen=8)
        self.address: str | None = None
        how: Any = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen(command, env=env, start_new_session=True, **how)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            found = re.search(r"http://[\d.]+:\d+", line)
            self.address = self.address or (found[0] if found else None)

    def look(self) -> None:
        if self.process.poll() is not None:
            self.reader.join(LAST)
            raise Ended("\n".join([f"{self.name} ended with {self.process.returncode}", *self.said]))

    def ready(self) -> str:
        while self.address is None:
            self.look()
            time.sleep(0.05)
        print(f"{self.name}: {self.address} (process {self.process.pid})", flush=True)
        return self.address

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(LAST)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(LAST)
        assert self.process.stderr is not None
        self.process.stderr.close()


class Said(NamedTuple):
    """An answer, by its tokens as the server traces them."""

    tokens: list[dict[str, Any]]

    @property
    def ids(self) -> list[int]:
        return [of["token"] for of in self.tokens]

    @property
    def away(self) -> list[dict[str, Any]]:
        return [of["peer"] for of in self.tokens if of["route"] == "escalate"]

    def shown(self) -> str:
        signs = (f"[{of['block']}{'^' if of['route'] == 'escalate' else ''}]" for of in self.tokens)
        return "".join(of["text"] + sign for of, sign in zip(self.tokens, signs, strict=True))

    def summed(self) -> str:
        count, depths = len(self.tokens), sorted(Counter(of["block"] for of in self.tokens).items())
        parts = [f"{count} tokens, {sum(of['ms'] for of in self.tokens) / count:.1f} ms each"]
        parts.append(", ".join(f"{n} after block {block}" for block, n in depths))
        if self.away:
            sent, ms = (sum(of[name] for of in self.away) for name in ("sent", "ms"))
            parts.append(f"{len(self.away)} by the peer: {sent / 1000:.1f} kB sent, {ms:.1f} ms till it answered")
        if any(of["fallen"] for of in self.tokens):
            parts.append("early has fallen back to lossless")
        return "; ".join(parts)


class Client:
    def __init__(self, http: httpx2.Client, look: Callable[[], None]):
        self.http, self.look = http, look
        self.about = self.told("GET", "/v1/models")["data"][0]

    @property
    def risks(self) -> list[str]:
        return self.about["agp"]["risks"]

    def told(self, method: str, path: str, **how: Any) -> Any:
        try:
            answer = self.http.request(method, path, **how)
        except httpx2.TransportError as e:
            time.sleep(0.2)  # for a process that fell to be seen lying
            self.look()
            raise Ended(f"agp serve does not answer: {type(e).__name__}") from e
        if answer.status_code != 200:
            raise Ended(f"agp serve says {answer.status_code}: {answer.text[:500]}")
        return answer.json()

    def asked(self, message: str, mode: str, **more: float) -> Said:
        body = {"model": self.about["id"], "messages": [{"role": "user", "content": message}], "max_tokens": LONGEST}
        agp = {"mode": mode, "trace": True} | more
        found = self.told("POST", "/v1/chat/completions", json=body | {"temperature": 0, "agp": agp})
        self.look()
        return Said(found["choices"][0]["agp"])


def add_arguments(parser) -> None:
    parser.add_argument("run", nargs="?", type=some_path, default=USUAL, metavar="RUN", help=f"default: {USUAL}")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    parser.add_argument("--once", action="store_true", help="end after the talk; 1 if something was not as promised")


def run(args) -> int:
    if not args.run.is_dir():
        raise ValueError(f"there is no run at {args.run}; `agp train` makes {USUAL}, `agp runs` lists what is there")
    whole(args.run)
    try:
        with stopped_by_signal(), hosts(args.run) as (serve, look):
            address = serve.ready()
            print(f"the page: {address}/", flush=True)
            if not args.no_browser and (sys.platform == "darwin" or any(map(os.environ.get, SCREENS))):
                webbrowser.open(f"{address}/")
            with httpx2.Client(base_url=address, timeout=PATIENCE, trust_env=False) as http:
                wrong = talk(Client(http, look))
            for what in wrong:
                print(f"not as promised: {what}", flush=True)
            if args.once:
                return 1 if wrong else 0
            print(f"\nGo on at {address}/ in a browser. Ctrl-C ends both hosts.", flush=True)
            while True:
                look()
                time.sleep(0.3)
    except Ended as e:
        print(f"agp demo: {e}", file=sys.stderr)
        return 1


@contextmanager
def stopped_by_signal() -> Iterator[None]:
    """SIGTERM takes the same way out as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def hosts(run: Path) -> Iterator[tuple[Host, Callable[[], None]]]:
    """The one that serves, and what looks after both. They share a word that nobody else can read."""
    started: list[Host] = []

    def look() -> None:
        for host in started:
            host.look()

    def start(verb: str, *words: str) -> Host:
        started.append(Host(verb, ["--run", str(run), "--port", "0", *words]))
        return started[-1]

    with TemporaryDirectory(prefix="agp-demo-") as folder:
        file = fresh(Path(folder))
        try:
            peer = start("peer", "--token-file", str(file)).ready()
            yield start("serve", "--peer", peer, "--peer-token-file", str(file), "--grace", "0"), look
        finally:
            before = {sign: signal.signal(sign, signal.SIG_IGN) for sign in (signal.SIGINT, signal.SIGTERM)}
            for host in reversed(started):
                host.end()
            for sign, handler in before.items():
                signal.signal(sign, handler)


def talk(client: Client) -> list[str]:
    """What of it was not as promised."""
    wrong, away = [], 0
    for message in TALK:
        print("\nyou       " + message.replace("\n", "\n          "), flush=True)
        full = printed("full", client.asked(message, "full"))
        lossless = printed("lossless", client.asked(message, "lossless"))
        same = lossless.ids == full.ids
        print(f"          identical: {'yes' if same else 'no'}", flush=True)
        wrong += [] if same else [f"lossless says something else than full depth to {message!r}"]
        away += len(lossless.away)
        if client.risks:
            early = printed("early", client.asked(message, "early", risk=float(client.risks[0])))
            like = "the same as" if early.ids == full.ids else "something else than"
            print(f"          risk {client.risks[0]}: {like} full depth here", flush=True)
    return wrong if away else [*wrong, "the peer ran no blocks of what is lossless"]


def printed(name: str, said: Said) -> Said:
    print(f"{name:<9} " + said.shown().replace("\n", "\n          "))
    print(f"          {said.summed()}", flush=True)
    return said
