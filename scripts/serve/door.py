"""Serve a run or a model over HTTP as OpenAI's API, with routing for who asks for it.

agp serve --run runs/tiny
agp serve --model google/gemma-4-E2B-it --port 8000 --batch 8
agp serve --run runs/tiny --peer http://127.0.0.1:9430
agp serve --run runs/gemma4_e2b --drafter drafts/e2b
agp serve --run runs/tiny --heads coreml
AGP_TOKEN="$(cat token.txt)" agp serve --run runs/tiny --host 192.168.1.7

curl http://127.0.0.1:8430/v1/chat/completions -H "Content-Type: application/json" \\
  -d '{"model": "tiny", "messages": [{"role": "user", "content": "Reverse: a b c"}]}'

Every token takes all blocks unless a request says otherwise: "agp": {"mode": "early", "risk": 0.01, "trace": true}.
With a --peer what goes above the tap, early or lossless, goes there, and is done here where no answer comes in time.
Without a temperature the likeliest token is taken; with one, the same seed gives the same text in any company. Not so
`early`: its audit draws tokens that run to full depth, and one that finds the promise broken goes for all.
A reply that runs out of --seconds, or of --grace at the end, says "length", as one that is as long as it may be.
Only this machine may ask, unless --host says otherwise; then a token is required, and travels as it is: over a network
that others use too, put TLS in front. Ctrl-C or SIGTERM lets replies end first; a second one does not wait.
"""

import argparse
import re
import sys
from pathlib import Path

import agp
from agp import adapter_files
from agp.adapters import attach
from agp.models.load import DTYPES, TABLES
from agp.peer import located
from agp.quant import BITS
from scripts import packaged, proven
from scripts.asked import some_path
from scripts.offers import Peers
from scripts.processes import alone_if_left
from scripts.serve.engine import Engine, Opened
from scripts.serve.limits import Limits
from scripts.serve.peer import is_loopback, listening
from scripts.serve.running import Server
from scripts.tokens import token_of

OWN = ("adapter", "dtype", "quantize", "table")  # of a model alone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="PATH", help="a checkpoint folder or a Hub id, at full depth alone")
    what.add_argument("--run", type=some_path, metavar="RUN", help="what `agp train` made: its teacher and its heads")
    packaged.add_arguments(parser)
    proven.add_arguments(parser)
    parser.add_argument("--name", help="what clients call it (default: the last part of RUN or PATH)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8430, help="0 takes any that is free (default: 8430)")
    parser.add_argument(
        "--token-file", type=some_path, metavar="FILE", help="who does not know it is out; or AGP_TOKEN"
    )
    parser.add_argument("--peer", metavar="URL", help="of `agp peer`: who runs the blocks above a tap, if it answers")
    parser.add_argument("--peer-token-file", type=some_path, metavar="FILE", help="what the peer asks for")
    parser.add_argument("--drafter", metavar="DIR", help="of --run: Google's drafter for its model, where lossless")
    parser.add_argument("--adapter", metavar="DIR", help="of --model: what `agp train` made, or PEFT, or mlx-lm")
    parser.add_argument("--dtype", choices=DTYPES, help="of --model; float32 is the fastest on a CPU")
    parser.add_argument("--quantize", type=int, choices=BITS, metavar="BITS", help="of --model, while loading")
    parser.add_argument("--table", choices=TABLES, help="of --model: where per-layer embeddings stay")
    usual = Limits()
    for name, kind, what in (
        ("batch", int, "replies that are continued at once"),
        ("queue", int, "requests that wait for a turn; more are turned away"),
        ("body", int, "bytes of a request"),
        ("prompt", int, "tokens of a prompt (default: the context)"),
        ("tokens", int, "tokens of a reply"),
        ("seconds", float, "from a request to the end of its reply"),
        ("grace", float, "seconds for replies to end in when the server stops"),
    ):
        value = getattr(usual, name)
        default = "" if value is None else f" (default: {value:g})"
        parser.add_argument(f"--{name}", type=kind, default=value, metavar="N", help=what + default)


def run(args: argparse.Namespace) -> None:
    limits = Limits(**{name: getattr(args, name) for name in Limits.__dataclass_fields__})
    given = [name for name in OWN if getattr(args, name) is not None]
    if args.run is not None and given:
        raise ValueError(f"a run has its own; leave out {', '.join(f'--{name}' for name in given)}")
    if args.run is None and args.drafter is not None:
        raise ValueError("--drafter needs the heads of a run; give --run instead of --model")
    if wrong := packaged.faults(args) + proven.faults(args):
        raise ValueError("; ".join(wrong))
    word = peer_token(args)
    token, loopback = token_of(args.token_file), is_loopback(args.host)
    if token is None and not loopback:
        raise ValueError(f"at {args.host} others could ask too; give --token-file or AGP_TOKEN, or leave out --host")
    name = args.name or Path(args.model if args.run is None else args.run.resolve()).name
    if not re.fullmatch(r"[!-~]{1,200}", name):
        raise ValueError(f"clients cannot call it {name!r}; give a --name of printable characters without spaces")
    alone_if_left()
    with listening(args.host, args.port) as sock:
        engine = Engine(name, lambda: opening(args, word), limits)
        engine.start()
        server = Server(engine, token, loopback)
        host, port = sock.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        print(f"agp serve: {name} answers at {address}/v1; the page is {address}/", file=sys.stderr, flush=True)
        server.until_stopped(sock)


def peer_token(args: argparse.Namespace) -> str | None:
    """What the peer is told; what clients tell this server is not for it."""
    if args.peer is not None and args.run is None:
        raise ValueError("--peer needs the heads of a run; give --run instead of --model")
    if args.peer is None and args.peer_token_file is not None:
        raise ValueError("--peer-token-file is for --peer, which is not given")
    if args.peer is not None:
        located(args.peer)
    return None if args.peer_token_file is None else token_of(args.peer_token_file)


def opening(args: argparse.Namespace, word: str | None) -> Opened:
    if args.run is not None:
        given = proven.beside(args, packaged.opened(args, drafter=args.drafter))
        return Opened(*given, peers=None if args.peer is None else Peers(args.run, given, args.peer, word))
    adapter = None if args.adapter is None else adapter_files.load(args.adapter)
    loaded = agp.load(args.model, dtype=args.dtype, quantize=args.quantize, table=args.table)
    if adapter:
        attach(loaded.model, adapter.adapter, adapter.arrays)
    return Opened(loaded)
