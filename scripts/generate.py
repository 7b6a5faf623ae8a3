"""Continue a prompt: the text streams to stdout, progress and speed go to stderr.

agp generate --model tiny-gemma4 --prompt "def mean(values):" --max-tokens 60
git diff | agp generate --model google/gemma-4-E2B-it --chat --prompt - --temperature 0.7 --seed 3

agp generate --model google/gemma-4-E2B-it --adapter runs/notes/adapter --chat --prompt "What did we decide?"
agp generate --run runs/tiny --mode early --risk 0.01 --chat --prompt "..." --trace -
agp generate --run runs/tiny --mode lossless --prompt "def mean(values):"
agp generate --run runs/tiny --mode lossless --peer http://127.0.0.1:9430 --prompt "def mean(values):"
agp generate --run runs/gemma4_e2b --mode lossless --drafter drafts/e2b --prompt "def mean(values):"
agp generate --model google/gemma-4-E2B-it --mode lossless --drafter drafts/e2b --prompt "def mean(values):"
agp generate --run runs/tiny --mode lossless --heads coreml --prompt "def mean(values):"
agp generate --run runs/tiny3n --regime small --mode early --peer http://127.0.0.1:9430 --chat --prompt "..." --trace -

With a run its heads decide: `early` leaves where its promised risk allows, audits some of it and goes on lossless where
the promise is found broken; `lossless` drafts early and says what full depth says. It may ask Google's drafter for a
Gemma 4 too, with the heads of a run or without a run.

A Gemma 3n may run as a smaller --regime of itself. Then its promise was calibrated for another model and only the audit
watches over it; a peer goes on by the blocks of the whole model, and such a token is that one's, not this host's.

Ctrl-C ends it; what was written stays. Without --temperature the likeliest token is taken, and all that a seed decides
is which tokens of `early` are audited.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import mlx.core as mx

import agp
from agp import adapter_files
from agp.adapters import attach
from agp.audit import Audit
from agp.follow import Token, Way, follow
from agp.generate import Sampler, Step, generate, make_sampler, until
from agp.models.checks import accept
from agp.models.decoder import Decoder
from agp.models.load import DTYPES, TABLES, Loaded
from agp.peer import located
from agp.quant import BITS
from agp.replies import Replies
from agp.text import Tokenizer
from scripts import packaged, proven
from scripts.asked import some_path
from scripts.offers import Peers
from scripts.routes import MODES, MOST, RATE, Opened, Trace, assistant_of, limited, untapped, viewed, way
from scripts.tokens import token_of

One = TypeVar("One")

QUIET = 2.0  # seconds of prefill before it is worth a word


def add_arguments(parser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="PATH", help="a checkpoint folder or a Hub id")
    what.add_argument("--run", type=some_path, metavar="RUN", help="what `agp train` made: its teacher and its heads")
    parser.add_argument("--mode", choices=MODES, default="full", help="how deep tokens go (default: full)")
    parser.add_argument("--regime", metavar="NAME", help="of a run of a Gemma 3n: a smaller model in it")
    parser.add_argument("--risk", type=float, metavar="R", help="of early: tokens that may differ (default: 0.01)")
    packaged.add_arguments(parser)
    proven.add_arguments(parser)
    parser.add_argument("--peer", metavar="URL", help="of `agp peer`: who runs the blocks above a tap, if it answers")
    parser.add_argument("--peer-regime", metavar="NAME", help="the peer's, as large or larger (default: the whole)")
    parser.add_argument("--token-file", type=some_path, metavar="FILE", help="what the peer asks for; or AGP_TOKEN")
    parser.add_argument("--drafter", metavar="DIR", help="of lossless: Google's drafter for the model, or a Hub id")
    parser.add_argument("--trace", metavar="FILE", help="a line of JSON for each token: route, block, ms; - is stderr")
    parser.add_argument("--adapter", metavar="DIR", help="what `agp train` made, or PEFT, or mlx-lm")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="text to continue; - reads stdin")
    parser.add_argument("--chat", action="store_true", help="ask it as a user, through the model's chat template")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="at most so many (default: 256)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: 0)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from this share (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text (default: 0)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--dtype", choices=DTYPES, help="default: as stored; float32 is the fastest on a CPU")
    parser.add_argument(
        "--quantize", type=int, choices=BITS, metavar="BITS", help="quantize while loading: 2, 3, 4, 5, 6 or 8"
    )
    parser.add_argument("--table", choices=TABLES, help="where per-layer embeddings stay (default: as memory allows)")


def run(args) -> None:
    sampler = make_sampler(args.temperature, args.top_p, args.seed)
    if wrong := faults(args):
        raise ValueError("; ".join(wrong))
    if args.peer is not None:
        located(args.peer)
    adapter = None if args.adapter is None else adapter_files.load(args.adapter)
    prompt = read_prompt(args.prompt)
    given = None if args.run is None else packaged.opened(args, drafter=args.drafter, regime=args.regime)
    given = given and proven.beside(args, given)
    if given is None:
        loaded = agp.load(args.model, dtype=args.dtype, quantize=args.quantize, table=args.table)
    else:
        loaded = given.loaded
    assistant = None if given or args.drafter is None else assistant_of(loaded, args.drafter)
    if adapter:
        attach(loaded.model, adapter.adapter, adapter.arrays)
    tokenizer = tokenizer_of(loaded)
    tokens = tokenizer.chat([{"role": "user", "content": prompt}]) if args.chat else tokenizer.encode(prompt)
    if mx.metal.is_available():  # keep the weights from being paged out between tokens
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    if given is not None:
        packaged.fits(args, given, len(tokens))
    clock = Clock(len(tokens), loaded.config.max_position_embeddings)
    stop = {*tokenizer.eos_ids, *stop_ids(tokenizer, args.stop)}
    with written(args.trace) as file:
        trace, peers, how = None, None, {"max_tokens": args.max_tokens, "stop": stop}
        if assistant is not None:
            steps = follow(untapped(assistant, begun(loaded.model, tokens, clock), sampler), **how)
        elif given is None or args.mode == "full":
            steps = generate(loaded.model, tokens, sampler=sampler, progress=clock.prefill, **how)
        else:
            peers = None if args.peer is None else beside(args, given)
            asked, upper = ({}, loaded.model) if peers is None else (peers.asked, peers.upper)
            trace = Trace(given.heads, file, asked, upper)
            steps = trace.through(follow(routed(args, given, tokens, sampler, clock, peers), **how), tokenizer)
        try:
            for piece in until(tokenizer.stream(ids(clock.count(steps), stop)), args.stop):
                print(piece, end="", flush=True)
        finally:
            print(f"\n{clock.report()}{f'; {trace}' if trace else ''}", file=sys.stderr)
            if peers is not None:
                peers.close()
    print()


def beside(args, given: Opened) -> Peers:
    upper = viewed(given.loaded, args.peer_regime)
    return Peers(args.run, given, args.peer, token_of(args.token_file), upper)


def routed(args, given: Opened, tokens: Sequence[int], sampler: Sampler, clock: "Clock", peers: Peers | None) -> Way:
    audit, risk = None, 0.01 if args.risk is None else args.risk
    if args.mode == "early":
        limited(given.heads, risk)
        audit = Audit(risk, RATE, args.seed)
    replies, beyond = begun(given.loaded.model, tokens, clock), None if peers is None else peers.beyond
    return way(given, args.mode, replies, sampler, audit=audit, beyond=beyond)


def begun(model: Decoder, tokens: Sequence[int], clock: "Clock") -> Replies:
    accept(model.config, model.identity, [list(tokens)], None, None)
    return Replies.begun(model, [tokens], slack=MOST + 1, progress=clock.prefill)


@contextmanager
def written(path: str | None) -> Iterator[Any]:
    """A file to write to, stderr for -, nothing for None."""
    if path in (None, "-"):
        yield None if path is None else sys.stderr
        return
    try:
        file = open(path, "w")
    except OSError as e:
        raise ValueError(f"--trace {path} cannot be written: {e.strerror}") from e
    with file:
        yield file


def faults(args) -> list[str]:
    wrong = [] if args.max_tokens >= 1 else [f"--max-tokens is {args.max_tokens}; 1 or more is needed"]
    wrong += ["a stop string is empty"] if "" in args.stop else []
    if args.run is None and args.mode == "lossless" and args.drafter is not None:
        needing = [f"--{name}" for name in ("peer", "trace") if getattr(args, name) is not None]
    else:
        needing = [f"--mode {args.mode}"] if args.run is None and args.mode != "full" else []
    instead = ", or a --drafter" if needing == ["--mode lossless"] else ""
    wrong += [f"{what} needs the heads of a run; give --run instead of --model{instead}" for what in needing]
    if args.mode != "early" and args.risk is not None:
        wrong.append(f"--risk is for --mode early; --mode {args.mode} takes none")
    if args.mode == "full" and args.peer is not None:
        wrong.append("--peer is for --mode early or lossless; at full depth all blocks run here")
    if args.mode != "lossless" and args.drafter is not None:
        wrong.append(f"--drafter is for --mode lossless; --mode {args.mode} takes none")
    if args.mode == "full" and args.trace is not None:
        wrong.append("--trace is for --mode early or lossless; at full depth every token takes the same way")
    wrong += packaged.faults(args) + proven.faults(args)
    if args.mode == "full" and args.heads != "mlx":
        wrong.append(f"--heads {args.heads} is for --mode early or lossless; at full depth no head is asked")
    if args.mode == "full" and args.small_head:
        wrong.append("--small-head is for --mode early or lossless; --mode full asks the whole head")
    if args.peer is None and args.token_file is not None:
        wrong.append("--token-file is for --peer, which is not given")
    if args.peer is None and args.peer_regime is not None:
        wrong.append("--peer-regime is of a peer; give --peer")
    if args.run is None and args.regime is not None:
        wrong.append("--regime is of a run; give --run instead of --model")
    if args.regime is not None and args.heads != "mlx":
        wrong.append(f"--heads {args.heads} says what the run's own regime is told; leave out --regime")
    given = [name for name in ("adapter", "dtype", "quantize", "table") if getattr(args, name) is not None]
    if args.run is not None and given:
        wrong.append(f"a run has its own; leave out {', '.join(f'--{name}' for name in given)}")
    return wrong


def read_prompt(given: str) -> str:
    try:
        prompt = sys.stdin.read() if given == "-" else given
        prompt.encode()
    except UnicodeError as e:
        raise ValueError(f"the prompt is not UTF-8 text: {e}") from e
    if not prompt:
        raise ValueError("the prompt is empty; give --prompt a text, or text on stdin with --prompt -")
    return prompt


def tokenizer_of(loaded: Loaded) -> Tokenizer:
    if loaded.tokenizer is None:
        raise ValueError(f"{loaded.path} has no tokenizer.json, so it cannot read a prompt; copy its base model's")
    return loaded.tokenizer


def stop_ids(tokenizer: Tokenizer, stops: Iterable[str]) -> list[int]:
    """Stop strings that are tokens: marks such as <turn|> never show in the text."""
    found = map(tokenizer.pieces.token_to_id, stops)
    return [token for token in found if token is not None]


def ids(steps: Iterable[Step | Token], stop: Iterable[int]) -> Iterator[int]:
    for step in steps:
        token = step.token if isinstance(step, Step) else step.id
        if token in stop:
            return
        yield token


@dataclass
class Clock:
    """Counts tokens and seconds, and says on stderr how they went."""

    prompt: int
    context: int
    start: float = field(default_factory=time.perf_counter)
    done: int = 0  # prompt tokens
    first: float | None = None
    last: float = 0.0
    tokens: int = 0

    def prefill(self, done: int, total: int) -> None:
        self.done, spent = done, time.perf_counter() - self.start
        if spent > QUIET and done < total:
            left = spent * (total - done) / done
            print(f"prompt: {done} of {total} tokens, {left:.0f} s left", file=sys.stderr)

    def count(self, steps: Iterable[One]) -> Iterator[One]:
        for step in steps:
            self.last = time.perf_counter()
            self.first = self.first or self.last
            self.tokens += 1
            yield step

    def report(self) -> str:
        peak = f"peak memory {mx.get_peak_memory() / 1e9:.2f} GB"
        if self.first is None:
            return f"{self.done} of {self.prompt} prompt tokens, {peak}"
        speed = f", {(self.tokens - 1) / (self.last - self.first):.1f} tokens/s" if self.tokens > 1 else ""
        fill = self.prompt / (self.first - self.start)
        full = "; the context is full" if self.prompt + self.tokens > self.context else ""
        return f"prompt: {self.prompt} tokens, {fill:.1f} tokens/s; text: {self.tokens} tokens{speed}; {peak}{full}"
