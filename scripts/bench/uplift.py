"""What a peer of a larger regime brings: how often a smaller one says what the whole model does, without and with it.

agp bench uplift
agp bench uplift --run runs/tiny3n --documents 200

The run's held-out texts, as the whole model wrote them, go through every smaller regime that the checkpoint names. At
each place where the whole model chose a token it is compared with the likeliest one of the smaller regime, and with the
likeliest after the whole model's blocks have gone on with what the smaller one made up to a tap, its keys and values
included: that is what a peer of the larger regime answers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.artifacts import RESULTS, write_results
from agp.models.decoder import Decoder
from agp.regimes import named
from agp.stats import Estimate, bootstrap_mean
from agp.uplift import above, smaller, unfit
from curricula.features import Features
from curricula.runner import read
from curricula.teacher import folded, teacher
from scripts.asked import some_path
from scripts.steps import Steps

COMMAND = "agp bench uplift"
ALONE = "alone"


class Told(NamedTuple):
    """Of each document: places where the token was the whole model's, for each way, and all places."""

    right: dict[str, list[int]]
    places: list[int]


def add_arguments(parser) -> None:
    usual = Path("runs/tiny3n")
    parser.add_argument(
        "--run", type=some_path, default=usual, metavar="RUN", help="of a Gemma 3n (default: %(default)s)"
    )
    parser.add_argument("--documents", type=int, default=200, metavar="N", help="at most so many texts (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="by which texts are drawn, and resampled (default: 0)")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where uplift.json goes (default: results/)")


def run(args) -> None:
    if args.documents < 2:
        raise ValueError(f"--documents is {args.documents}; 2 or more are needed for an interval")
    loaded = teacher(args.run / "domain")
    folded(loaded.model)
    lowers = smaller(loaded.model, named(loaded.config, loaded.path))
    if not lowers:
        raise ValueError(f"{loaded.path} names no smaller regime; tiny-gemma3n does, and agp train tiny3n trains on it")
    features = Features(args.run / "harvest", "test")
    rng, count = np.random.default_rng(args.seed), len(features.begins)
    drawn = np.sort(rng.permutation(count)[: args.documents])
    found: dict[str, dict[str, Any]] = {}
    steps = Steps(len(lowers))
    for lower in lowers:
        with steps(lower.name):
            found[lower.name] = summed(told(loaded.model, lower, features, drawn), args.seed)
        print("\n".join(lines(lower.name, found[lower.name])))
    inputs = {stage: read(args.run / stage)["digest"] for stage in ("domain", "harvest")}
    print(write(found, args.folder, len(drawn), args.seed, inputs))


def told(whole: Decoder, lower: Decoder, features: Features, documents: np.ndarray) -> Told:
    taps = [tap for tap in features.taps if not unfit(lower, whole, tap)]
    found = Told({ALONE: []} | {str(tap): [] for tap in taps}, [])
    for document in documents.tolist():
        ids, places = mx.array(features.of(document, "ids")[None, :-1]), features.of(document, "length")
        places -= features.of(document, "first")
        begun = whole.embed(ids)
        truth = likeliest(whole, whole.blocks(begun), places)
        stream = lower.embed(ids)
        below = 0
        for tap in taps:
            stream, below = lower.blocks(stream, start=below, stop=above(lower, tap)), above(lower, tap)
            mixed = whole.blocks(stream._replace(inputs=begun.inputs), start=above(whole, tap))
            found.right[str(tap)].append(int((likeliest(whole, mixed, places) == truth).sum()))
        alone = likeliest(lower, lower.blocks(stream, start=below), places)
        found.right[ALONE].append(int((alone == truth).sum()))
        found.places.append(places)
    return found


def likeliest(model: Decoder, stream: Any, places: int) -> np.ndarray:
    last = stream._replace(hidden=stream.hidden[:, -places:])
    return np.array(mx.argmax(model.unembed(last), axis=-1))[0]


def summed(of: Told, seed: int) -> dict[str, Any]:
    """Shares of places, intervals by document; gains are over the smaller regime alone, on the same documents."""
    base, found = np.array(of.right[ALONE]), {}
    for way, right in of.right.items():
        found[way] = {"agreement": shown(bootstrap_mean(right, seed, of.places))}
        if way != ALONE:
            found[way]["gain"] = shown(bootstrap_mean(np.array(right) - base, seed, of.places))
    return {"places": sum(of.places), "ways": found}


def shown(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "interval": list(estimate.interval)}


def lines(name: str, of: dict[str, Any]) -> list[str]:
    told = []
    for way, row in of["ways"].items():
        what = ALONE if way == ALONE else f"whole above block {way}"
        gain = "" if way == ALONE else f", {brief(row['gain'], '+.4f')} over alone"
        told.append(f"{name:<12} {what:<20} {brief(row['agreement'], '.4f')}{gain}")
    return told


def brief(of: dict[str, Any], form: str) -> str:
    low, high = of["interval"]
    return f"{of['value']:{form}} [{low:{form}}, {high:{form}}]"


def write(found: dict[str, dict[str, Any]], folder: Path, documents: int, seed: int, inputs: dict[str, str]) -> Path:
    def figure(what: str, ways: Callable[[str], bool]) -> dict[str, Any]:
        rows = {f"{n}, {w}": row[what] for n, of in found.items() for w, row in of["ways"].items() if ways(w)}
        edges = ("value", "interval")
        return {edge: {name: row[edge] for name, row in rows.items()} for edge in edges} | {"command": COMMAND}

    return write_results(
        "uplift",
        {
            "uplift.agreement": figure("agreement", lambda way: True),
            "uplift.gain": figure("gain", lambda way: way != ALONE),
        },
        folder=folder,
        what="places where the likeliest token is that of the whole model, which agrees with itself at all of them: by "
        "regime, alone or with the whole model above a block; intervals by document",
        documents=documents,
        places=next(iter(found.values()))["places"],
        seeds=[seed],
        inputs=inputs,
    )
