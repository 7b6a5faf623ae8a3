"""What a token costs where early decoding keeps its promise, in multiplications: four tokens read for each one made.

agp bench mission
agp bench mission --runs runs/tiny runs/tiny3n

A prompt's tokens go up to the last block that makes keys and values; full depth takes them through all. A token that is
made leaves where the run lets it, by thresholds that are chosen again, for a risk of 1 % with a chance of 5 % to be
wrong, on the run's own texts; all checks are counted. Beside each run stands the same share of tokens on a published
model's blocks: a count, not a measurement.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from agp.artifacts import RESULTS, write_results
from agp.macs import Macs, macs
from agp.models.folder import build
from agp.models.known import KNOWN
from curricula import recipes
from curricula.stages import calibrate
from curricula.teacher import teacher
from scripts.asked import some_path
from scripts.bench.curriculum import made_by, manifests
from scripts.steps import Steps

COMMAND = "agp bench mission"
RISK, DELTA = 0.01, 0.05
READ = 4  # tokens of a prompt for each that is made
LARGE = {"tiny": "google/gemma-4-E2B-it", "tiny3n": "google/gemma-3n-E2B-it"}


def add_arguments(parser) -> None:
    usual = [Path("runs/tiny"), Path("runs/tiny3n")]
    parser.add_argument("--runs", nargs="+", type=some_path, default=usual, metavar="RUN", help="finished runs")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where mission.json goes (default: results/)")


def run(args) -> None:
    known = {root: made_by(root) for root in args.runs}
    for root, (name, stages) in known.items():
        manifests(root, name, stages)
    steps, found = Steps(len(known)), {}
    for root, (name, _) in known.items():
        with steps(name):
            found[name] = measured(root, name)
    for name, of in found.items():
        print(line(name, of))
    print(write(found, args.folder))


def measured(root: Path, name: str) -> dict[str, Any]:
    config = replace(getattr(recipes, name)().calibrate, risks=(RISK,), delta=DELTA)
    needs = {stage: root / stage for stage in ("domain", "harvest", "trajectory", "depth")}
    with tempfile.TemporaryDirectory(prefix="agp-mission-") as home:
        out = Path(home) / "calibrate"
        out.mkdir()
        told = calibrate.run(config, needs, out, None)
    made, decision = told["macs"][f"{RISK:g}"], told["decisions"]["revive"][f"{RISK:g}"]
    decoder = teacher(root / "domain").model
    found = composite(macs(decoder), decoder.config.num_producers, made)
    known = {"value": told["macs_oracle"], "interval": []}
    found["known beforehand"] = composite(macs(decoder), decoder.config.num_producers, known)["value"]
    if name in LARGE:
        large = build(KNOWN[LARGE[name]])
        found["by the blocks of"] = {LARGE[name]: composite(macs(large), large.config.num_producers, made)["value"]}
    return found | {"made": made, "risk": decision["risk"], "violations": decision["violations"]}


def composite(count: Macs, producers: int, made: dict[str, Any]) -> dict[str, Any]:
    """As a share of full depth, which takes a prompt's tokens through all blocks and no head."""
    through = count.upto(len(count.blocks))
    read, whole = READ * count.upto(producers), READ * through + count.whole
    share = lambda of: (read + of * count.whole) / whole
    return {
        "value": share(made["value"]),
        "interval": [share(edge) for edge in made["interval"]],
        "read": count.upto(producers) / through,
    }


def line(name: str, of: dict[str, Any]) -> str:
    low, high = of["interval"]
    told = (
        f"{name:<8} {of['value']:.3f} [{low:.3f}, {high:.3f}] of full depth: {of['read']:.3f} of a token that is read"
    )
    others = "".join(
        f"; with the blocks of {model} {value:.3f}" for model, value in of.get("by the blocks of", {}).items()
    )
    told += f", {of['made']['value']:.3f} of one that is made{others}; {of['known beforehand']:.3f} if it were known"
    return f"{told} beforehand who may leave; risk on test {of['risk']:.4f}"


def write(found: dict[str, Any], folder: Path) -> Path:
    figure = {
        "value": {name: of["value"] for name, of in found.items()},
        "interval": {name: of["interval"] for name, of in found.items()},
        "goal": "<= 0.40",
        "command": COMMAND,
    }
    return write_results(
        "mission",
        {"mission.certified_macs": figure},
        folder=folder,
        what=f"multiplications of {READ} tokens read and one made, at a certified risk of {RISK:g} (delta {DELTA:g}), "
        "by those of full depth; the run's own test texts, interval by document",
        runs=found,
    )
