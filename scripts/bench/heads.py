"""Speed of training heads on the states that the harvest kept, beside making them again at each step; in turn.

agp bench heads
agp bench heads --run runs/tiny --pairs 3

Both sides take the same positions through the same compiled step and differ in one thing: where states, and keys and
values, come from. The headline is of the trajectory head with the batches that its stage draws: positions from
anywhere, whose documents have to be run again. Beside it stands what costs least: batches of whole documents of like
length, all of whose positions are used. Either way the teacher goes no further up than the head reads, is compiled, and
has its adapter folded in; labels and what a glance tells are given to both. A first turn, in which all is compiled, is
not counted.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agp.artifacts import RESULTS, write_results
from agp.fuse import fuse
from agp.stats import paired_ratio
from agp.train import FitConfig, Run
from curricula import mending, recipes
from curricula.features import Features
from curricula.teacher import teacher
from scripts.asked import some_path
from scripts.bench.curriculum import made_by, manifests
from scripts.bench.heads_drawn import drawn_case, positions
from scripts.bench.heads_fed import SEED, Case, Documents, cases, text

COMMAND = "agp bench heads"
SIDES = ("kept", "made")
DRAWN = "trajectory, as drawn"
HEADS = ("trajectory", "semantic", "depth", "transfer")
APART = 0.01  # of a loss: what is kept is kept to 11 bits
LEAST = {"pairs": 2, "batches": 1, "positions": 1}
FIT = FitConfig(steps=10**6, rate=1e-5, log_every=10**6)


def add_arguments(parser) -> None:
    parser.add_argument("--run", type=some_path, default=Path("runs/tiny"), help="a finished run (default: runs/tiny)")
    parser.add_argument("--pairs", type=int, default=7, help="turns that are counted, of each side (default: 7)")
    parser.add_argument("--batches", type=int, default=4, help="a turn (default: 4)")
    parser.add_argument("--positions", type=int, default=512, help="a batch, about (default: 512)")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where heads.json goes (default: results/)")


def run(args) -> None:
    if wrong := [
        f"--{n} is {getattr(args, n)}; {m} or more is needed" for n, m in LEAST.items() if getattr(args, n) < m
    ]:
        raise ValueError("; ".join(wrong))
    name, stages = made_by(args.run)
    digests = {stage: manifest["digest"] for stage, manifest in manifests(args.run, name, stages).items()}
    recipe, loaded = getattr(recipes, name)(), teacher(args.run / "domain")
    features = Features(args.run / "harvest", "heads")
    fuse(loaded.model)
    batches = [text(features, part) for part in drawn(features, args.positions)[: args.batches]]
    fed = cases(args.run, recipe, loaded, features)
    found = {head: raced(head, case, batches, args.pairs) for head, case in fed.items()}
    spread = positions(features, args.positions, args.batches, SEED)
    found[DRAWN] = raced(DRAWN, drawn_case(args.run, loaded, features), spread, args.pairs)
    for head, of in found.items():
        count = sum(map(len, spread)) if head == DRAWN else sum(len(given.at) for given in batches)
        print(f"{head:<20} {told(of, count)}")
    print(write(found, batches, {"recipe": name, "inputs": digests}, args))


def drawn(features: Features, positions: int) -> list[np.ndarray]:
    """Documents of like length, so many that together they have about that many positions; in any order."""
    order = np.concatenate(mending.parts(features, 1))
    counts = np.bincount(features.document)[order]
    found = np.split(order, np.flatnonzero(np.diff(np.cumsum(counts) // positions)) + 1)
    np.random.default_rng(SEED).shuffle(found)
    return found


def raced(name: str, case: Case, batches: Sequence[Any], pairs: int) -> dict[str, Any]:
    """Of each side the seconds of every turn but the first."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    losses: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="agp-heads-") as folder:
        runs = {side: Run(case.make(), case.loss, FIT, Path(folder) / side, {}, None) for side in SIDES}
        for number in range(pairs + 1):
            for side in SIDES[:: 1 if number % 2 else -1]:
                started = time.perf_counter()
                for given in batches:
                    ask = lambda step, micro, of=case.given[side], given=given: of(given)
                    runs[side].step(ask, lambda: False, lambda row, of=losses[side]: of.append(row["loss"]))
                seconds[side].append(time.perf_counter() - started)
    same(name, *(losses[side][: len(batches)] for side in SIDES))
    return {"seconds": {side: of[1:] for side, of in seconds.items()}, "losses": {s: of[0] for s, of in losses.items()}}


def same(name: str, kept: Sequence[float], made: Sequence[float]) -> None:
    """Whether both learn from the same states: the losses of the first turn."""
    for ours, theirs in zip(kept, made, strict=True):
        if abs(ours - theirs) > APART * abs(theirs):
            raise ValueError(f"{name}: the sides do not train the same: their losses are {ours} and {theirs}")


def ratio(found: Mapping[str, Any]):
    """How many times as fast."""
    return paired_ratio(found["seconds"]["made"], found["seconds"]["kept"], SEED)


def told(found: Mapping[str, Any], positions: int) -> str:
    kept, made = (positions / float(np.median(found["seconds"][side])) for side in SIDES)
    value, (low, high) = ratio(found)
    return f"{kept:,.0f} | {made:,.0f} positions/s, {value:.1f} times [{low:.1f}, {high:.1f}]"


def write(found: Mapping[str, Any], batches: Sequence[Documents], made_of: dict[str, Any], args) -> Path:
    def figure(*names: str) -> dict[str, Any]:
        of = {name: ratio(found[name]) for name in names}
        values, intervals = (
            {name: part(r) for name, r in of.items()} for part in (lambda r: r.value, lambda r: list(r.interval))
        )
        one = len(names) == 1
        return {"value": values[names[0]] if one else values, "interval": intervals[names[0]] if one else intervals}

    figures = {
        "heads.cache_ratio": figure(DRAWN) | {"goal": ">= 20", "command": COMMAND},
        "heads.cache_ratio_whole_documents": figure(*HEADS) | {"command": COMMAND},
    }
    return write_results(
        "heads",
        figures,
        folder=args.folder,
        what="positions a second of training from kept states, by those from states made again",
        headline="heads.cache_ratio is of the trajectory head, which reads all taps, on batches as it draws them",
        counts={
            "pairs": args.pairs,
            "documents": [len(of.which) for of in batches],
            "positions": [len(of.at) for of in batches],
            "tokens": [int(of.ids.size) for of in batches],
        },
        seeds={"documents": SEED, "bootstrap": SEED},
        heads=dict(found),
        **made_of,
    )
