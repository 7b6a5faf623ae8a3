"""What early and lossless decoding would bring on a published model: a model of cost, and no measurement.

agp bench carry
agp bench carry --prompts 20        a look at fewer answers

Counted on a finished run: which passes a token takes, of which blocks, at how many positions. Priced for the published
model in 4 bits: a pass reads its weights at the chip's published bandwidth. How much longer it takes at several
positions is given twice: not at all, as where memory is all that counts, and as a block of that size was timed here.
"""

import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import mlx.core as mx
from tqdm import tqdm

from agp.artifacts import RESULTS, write_results
from agp.audit import Audit
from agp.cache import KV
from agp.follow import follow
from agp.macs import macs
from agp.models.decoder import Decoder, Stream
from agp.pace import Pace
from agp.replies import Replies
from curricula.documents import Prompt
from scripts.asked import some_path
from scripts.bench.export_real import random_bundle
from scripts.bench.mission import LARGE
from scripts.bench.passes import Pass, Recorded
from scripts.bench.promises_lossless import Drafting
from scripts.bench.routed import MOST_TOKENS, asked, sampler
from scripts.routes import MOST, RATE, opened, way

COMMAND = "agp bench carry"
BANDWIDTH = {"M1": 68, "M2": 100, "M4": 120, "M5": 153}  # GB/s, as Apple says of the plain chips
RECIPES = {"tiny": "gemma4_e2b", "tiny3n": "gemma3n_e2b"}
BITS, HALF = 4.5, 16  # of a weight: four and its share of scale and bias; heads stay in half precision
WAYS = {"lossless": ("lossless", None), "early_0.01": ("early", 0.01), "early_0.05": ("early", 0.05)}
CONTEXT, TIMES = 256, 15
SEED = 0


class Parts(NamedTuple):
    """Bytes that a pass reads."""

    below: float
    above: float
    look: float
    head: float

    @property
    def whole(self) -> float:
        return self.below + self.above + self.head


def add_arguments(parser) -> None:
    usual = [Path("runs/tiny"), Path("runs/tiny3n")]
    parser.add_argument("--runs", nargs="+", type=some_path, default=usual, metavar="RUN", help="finished runs")
    parser.add_argument("--prompts", type=int, default=100, metavar="N", help="answers counted a run (default: 100)")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where carried.json goes (default: results/)")


def run(args) -> None:
    if args.prompts < 1:
        raise ValueError(f"--prompts is {args.prompts}; 1 or more is needed")
    if unknown := [root for root in args.runs if root.resolve().name not in RECIPES]:
        raise ValueError(
            f"{unknown[0]} is not a run of {' or '.join(RECIPES)}, whose proportions a published model has"
        )
    found = {}
    for root in args.runs:
        name = root.resolve().name
        found[name] = priced(name, counted(root, args.prompts))
        print(line(name, found[name]), flush=True)
    print(write(found, args.folder))


def counted(root: Path, count: int) -> dict[str, list[tuple[int, list[Pass]]]]:
    """By way: of each answer how many tokens it has, and the passes that made them."""
    given = opened(root)
    chosen, stop = asked(root, given, count), set(given.loaded.tokenizer.eos_ids)  # type: ignore[union-attr]
    found: dict[str, list[Any]] = {each: [] for each in WAYS}
    with Recorded(given.heads) as seen:
        given = given._replace(heads=seen.heads)
        for n, prompt in enumerate(tqdm(chosen, desc=root.name, leave=False)):
            for each, (mode, risk) in WAYS.items():
                found[each].append(answered(given, seen, mode, risk, prompt, n, stop))
    return found


def answered(given, seen: Recorded, mode: str, risk: float | None, prompt: Prompt, n: int, stop: set[int]):
    replies = Replies.begun(given.heads.decoder, [prompt.ids], slack=MOST + 1)
    audit, pace = None if risk is None else Audit(risk, RATE, n), Drafting() if mode == "lossless" else Pace()
    going = way(given, mode, replies, sampler(prompt, n), audit=audit, pace=pace, watching=False)
    seen.passes.clear()
    tokens = sum(1 for _ in follow(going, max_tokens=MOST_TOKENS, stop=stop))
    return tokens, list(seen.passes)


def sizes(model: Decoder, look: int) -> Parts:
    count, tap = macs(model), model.config.num_producers
    below, above = count.upto(tap), sum(count.blocks[tap:])
    return Parts(*(n * bits / 8 for n, bits in ((below, BITS), (above, BITS), (look, HALF), (count.head, BITS))))


def growth(model: Decoder) -> list[float]:
    """Of one block above the last producer, in float32 here: how much longer it takes at 1, 2, ... positions."""
    config, block = model.config, model.config.num_producers
    mx.eval(model.layers[block].parameters())
    kind, one = config.layer_types[block], model.blocks(model.embed(mx.zeros((1, 1), mx.int32)), stop=block)
    kv = KV(*(mx.random.normal((*a.shape[:2], CONTEXT, a.shape[3])) for a in one.shared[kind]))  # shapes are measured
    shared, times = {kind: kv}, {n: [] for n in range(1, MOST + 2)}
    for _ in range(TIMES + 1):
        for n, of in times.items():
            hidden = model.start(mx.random.normal((1, n, config.hidden_size)))
            inputs = mx.random.normal((1, n, config.num_layers, config.hidden_size_per_layer_input))
            mx.eval(hidden, inputs, kv)
            began = time.perf_counter()
            mx.eval(model.blocks(Stream(hidden, inputs, CONTEXT, None, shared), start=block, stop=block + 1).hidden)
            of.append(time.perf_counter() - began)
    return [median(of[1:]) / median(times[1][1:]) for of in times.values()]


def read(passes: list[Pass], parts: Parts, grows: list[float]) -> float:
    """Bytes, or what would take as long."""
    return sum(getattr(parts, of.what) * grows[of.positions - 1] for of in passes)


def priced(name: str, found: dict[str, Any]) -> dict[str, Any]:
    mx.random.seed(SEED)
    large = random_bundle(RECIPES[name])
    model = large.decoder
    hope, told = large.late.macs(0)
    look = large.modules[0].macs + large.glance.macs + told
    parts, timed = sizes(model, look), growth(model)
    ways = {}
    for each, answers in found.items():
        tokens, passes = sum(count for count, _ in answers), [of for _, some in answers for of in some]
        ways[each] = {
            "ratio_by_memory": round(tokens * parts.whole / read(passes, parts, [1.0] * len(timed)), 3),
            "ratio_as_timed_here": round(tokens * parts.whole / read(passes, parts, timed), 3),
            "passes_per_token": {
                what: round(sum(of.what == what for of in passes) / tokens, 3) for what in parts._fields
            },
        }
    chips = {chip: round(parts.whole / rate / 1e6, 2) for chip, rate in BANDWIDTH.items()}
    overhead = (hope + look) / macs(model).whole
    return {
        "model": LARGE[name],
        "megabytes": {what: round(size / 1e6, 1) for what, size in parts._asdict().items()},
        "growth": [round(of, 3) for of in timed],
        "full_milliseconds": chips,
        "overhead": round(overhead, 4),
        "ways": ways,
    }


def line(name: str, of: dict[str, Any]) -> str:
    rows = [f"{of['model']}, by the passes of {name}; at full depth " + chips(of["full_milliseconds"])]
    for each, told in of["ways"].items():
        both = f"{told['ratio_as_timed_here']:.2f} to {told['ratio_by_memory']:.2f} of its speed"
        rows.append(f"  {each:<10} {both}, a model of cost")
    return "\n".join([*rows, f"  heads and router, where all look: {of['overhead']:.4f} of its multiplications"])


def chips(known: dict[str, float]) -> str:
    return ", ".join(f"{chip} {ms:.0f} ms" for chip, ms in known.items()) + " a token at least"


def write(found: dict[str, Any], folder: Path) -> Path:
    figure = {
        "value": {of["model"]: of["overhead"] for of in found.values()},
        "goal": "<= 0.03",
        "command": COMMAND,
        "proxy": True,
    }
    return write_results(
        "carried",
        {"router.overhead": figure},
        folder=folder,
        what="a model of cost, not measured: passes counted on a run, weights of the published model in 4 bits read at "
        "the chip's published bandwidth; overhead: what heads multiply where every token is looked at, over full depth",
        config={"GB/s": BANDWIDTH, "bits": BITS, "bits of heads": HALF, "context": CONTEXT},
        seeds={"prompts": SEED, "draws": "number of the prompt"},
        runs=found,
    )
