"""What a finished run of the curriculum is worth, over several seeds of its heads; rows, domain and harvest are fixed.

agp bench curriculum
agp bench curriculum --run runs/tiny --seeds 3

Seed 0 is the run itself. Of each further seed the heads are made again beside it, in runs/tiny-seed1 and so on, from
the same files; broken off, it goes on where it ended. A value is the mean of the seeds', an interval goes from the mean
of their lower ends to that of their upper ends: each is clustered by document, and none says how seeds differ. That is
the spread.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agp.artifacts import RESULTS, alone, write_results
from agp.figures import met
from agp.hosts import differences
from curricula import recipes, runner
from curricula.runner import Stage
from scripts.asked import some_path
from scripts.recipe import ABOUT

COMMAND = "agp bench curriculum"
HEADS = ("trajectory", "semantic", "depth", "transfer", "calibrate")
INTERVAL = "from the mean of the seeds' lower ends to the mean of their upper ends, each clustered by document"
WRITE_UP = {"trajectory.route_accuracy": 0.8444, "about": "as the write-up has it: other data, 45 examples or so"}


class Wanted(NamedTuple):
    stage: str
    path: tuple[str | int, ...]  # of the metric; a number counts taps
    goal: str | None = None


FIGURES = {
    "domain.loss_drop": Wanted("domain", ("loss_drop",), ">= 0.25"),
    "domain.general_drop": Wanted("domain", ("general_drop",), "<= 2"),
    "trajectory.auroc": Wanted("trajectory", ("auroc",), ">= 0.88"),
    "trajectory.auroc_gain": Wanted("trajectory", ("auroc_gain",), "> 0"),
    "trajectory.risk_coverage_gain": Wanted("trajectory", ("risk_coverage_gain",), "> 0"),
    "trajectory.route_accuracy": Wanted("trajectory", ("route_accuracy",)),
    "trajectory.macro_f1": Wanted("trajectory", ("macro_f1",)),
    "trajectory.unsafe_accept_rate": Wanted("trajectory", ("unsafe_accept_rate",)),
    "vitality.gain": Wanted("trajectory", ("vitality_gain",), "> 0"),
    "semantic.auroc": Wanted("semantic", ("auroc",), ">= 0.95"),
    "semantic.variance_explained": Wanted("semantic", ("variance_explained",), ">= 0.92"),
    "semantic.spliced_agreement": Wanted("semantic", ("spliced_agreement",), ">= 0.93"),
    "depth.agreement_gain": Wanted("depth", ("gain",), "> 0"),
    "depth.agreement_gain_first": Wanted("depth", ("gain", 0), ">= 0.1"),
    "depth.macs_at_1pct": Wanted("calibrate", ("macs", "0.01"), "<= 0.80"),
    "transfer.next_agreement_4x": Wanted("transfer", ("next_agreement_4x",), ">= 0.99"),
    "transfer.next_agreement_8x": Wanted("transfer", ("next_agreement_8x",), ">= 0.955"),
    "transfer.next_agreement_16x": Wanted("transfer", ("next_agreement_16x",), ">= 0.90"),
    "transfer.greedy16_agreement_4x": Wanted("transfer", ("greedy16_agreement_4x",), ">= 0.90"),
    "calibrate.violations": Wanted("calibrate", ("violations",), "<= 0.135"),  # 0.1, and what 200 resplits may err
    "calibrate.route_accuracy": Wanted("calibrate", ("route_accuracy",)),
    "calibrate.macro_f1": Wanted("calibrate", ("macro_f1",)),
    "calibrate.unsafe_accept_rate": Wanted("calibrate", ("unsafe_accept_rate",)),
}

Told = dict[str, tuple[float, Sequence[float] | None]]  # by tap, or by "" alone: a value and its interval


def add_arguments(parser) -> None:
    parser.add_argument("--run", type=some_path, default=Path("runs/tiny"), help="a finished run (default: runs/tiny)")
    parser.add_argument("--seeds", type=int, default=3, help="of the heads, the run's own included (default: 3)")
    parser.add_argument(
        "--folder", type=Path, help="where curriculum.json goes (default: results/, of 3 or more seeds of tiny alone)"
    )


def run(args) -> None:
    if args.seeds < 1:
        raise ValueError(f"--seeds is {args.seeds}; 1 or more is needed")
    name, stages = made_by(args.run)
    found = [manifests(args.run, name, stages)]
    for seed in range(1, args.seeds):
        found.append(again(args.run, stages, seed))
    metrics = [{stage: manifest["metrics"] for stage, manifest in of.items()} for of in found]
    minutes = sum(seconds(args.run / stage.name) for stage in stages) / 60
    figures, seeds = measured(metrics, minutes if name == "tiny" else None)
    print("\n".join(lines(figures, seeds)))
    if args.folder is None and (name != "tiny" or args.seeds < 3):
        print("not written: results/curriculum.json is of tiny, and of 3 seeds")
        return
    digests = {stage: manifest["digest"] for stage, manifest in found[0].items()}
    print(write(figures, seeds, {"recipe": name, "inputs": digests}, args.folder or RESULTS))


def made_by(root: Path) -> tuple[str, list[Stage]]:
    """The recipe's name, and its stages."""
    if not (root / ABOUT).exists():
        raise ValueError(f"there is no run in {root}: --run DIR says where one is, and `agp train` makes runs/tiny")
    name = json.loads((root / ABOUT).read_text())["recipe"]
    return name, recipes.stages(getattr(recipes, name)())


def manifests(root: Path, name: str, stages: Sequence[Stage]) -> dict[str, dict]:
    if begun := [stage.name for stage in stages if not (root / stage.name / runner.MANIFEST).exists()]:
        raise ValueError(f"{root} has not finished {', '.join(begun)}; `agp train {name} --out {root}` goes on")
    made = {stage.name: runner.made(runner.read(root / stage.name)) for stage in stages}
    if other := differences(
        {stage.name: runner.made_of(stage, {})["config"] for stage in stages},
        {stage: key["config"] for stage, key in made.items()},
    ):
        told = "; ".join(f"{at} is {was!r} and there {now!r}" for at, was, now in other)
        raise ValueError(f"{root} was made with other settings than {name} has, and figures are of these: {told}")
    return {stage: whole for stage, key in made.items() if (whole := runner.whole(root / stage, key))}


def again(root: Path, stages: Sequence[Stage], seed: int) -> dict[str, dict]:
    """The heads made with another seed. Its gates are open: what is not good enough has to be counted too."""
    folder = root.parent / f"{root.name}-seed{seed}"
    for stage in stages:
        if stage.name not in HEADS:
            link(root / stage.name, folder / stage.name)
    with alone(folder):
        return runner.run(
            [seeded(stage, seed) for stage in stages], folder, say=lambda text: print(f"seed {seed}, {text}")
        )


def link(stage: Path, into: Path) -> None:
    """The same files, the manifest last: a folder that has one is whole."""
    for name in (*runner.read(stage)["files"], runner.TIMES, runner.MANIFEST):
        if not (into / name).exists():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(stage / name, into / name)


def seeded(stage: Stage, seed: int) -> Stage:
    if stage.name not in HEADS:
        return stage
    own = {"seed": seed} if hasattr(stage.config, "seed") else {}
    return replace(stage, config=replace(stage.config, fit=replace(stage.config.fit, seed=seed), **own), gate={})


def seconds(stage: Path) -> float:
    return json.loads((stage / runner.TIMES).read_text())["seconds"]


def measured(metrics: Sequence[Mapping[str, Mapping]], minutes: float | None) -> tuple[dict[str, dict], dict[str, Any]]:
    """Figures, and of each the number of every seed; what no stage measured is left out."""
    figures, seeds = {}, {}
    for name, wanted in FIGURES.items():
        told = [read(of[wanted.stage], wanted.path) for of in metrics]
        if None in told:
            continue
        figures[name], seeds[name] = joined([of for of in told if of is not None], wanted.goal)
    if minutes is not None:
        figures["tiny.minutes"] = {"value": minutes, "goal": "<= 8", "command": COMMAND}
    return figures, seeds


def read(metrics: Mapping[str, Any], path: Sequence[str | int]) -> Told | None:
    """A metric as stages write it: a number beside its interval, an estimate, or an estimate a tap."""
    first, *rest = path
    if (of := metrics.get(str(first))) is None:
        return None
    for step in rest:
        of = list(of.values())[step] if isinstance(step, int) else of[step]
    if not isinstance(of, Mapping):
        return {"": (of, metrics.get(f"{first}_interval"))}
    if "value" in of:
        return {"": (of["value"], of["interval"])}
    return {tap: (at["value"], at["interval"]) for tap, at in of.items()}


def joined(told: Sequence[Told], goal: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """A figure, and its seeds."""
    value, interval, seeds = {}, {}, {}
    for label in (label for label in told[0] if all(label in of for of in told)):
        each = [of[label][0] for of in told]
        value[label] = float(np.mean(each))
        seeds[label] = {"seeds": each, "spread": [min(each), max(each)]}
        ends = [pair for of in told if (pair := of[label][1]) is not None]
        if len(ends) == len(told):
            interval[label] = np.mean(ends, axis=0).tolist()
    value, interval, seeds = ({**of} if "" not in of else of[""] for of in (value, interval, seeds))
    figure = {"value": value, "interval": interval or None, "goal": goal, "command": COMMAND}
    return {name: of for name, of in figure.items() if of is not None}, seeds


def lines(figures: Mapping[str, Mapping], seeds: Mapping[str, Mapping]) -> list[str]:
    """Of each value what it is held to, and whether all that the interval holds would meet it."""
    found = []
    for name, figure in figures.items():
        values, intervals = figure["value"], figure.get("interval")
        every = values if isinstance(values, dict) else {"": values}
        for label, value in every.items():
            pair = intervals[label] if isinstance(values, dict) and intervals else intervals
            apart = seeds[name][label] if isinstance(values, dict) else seeds.get(name)
            found.append(line(f"{name}[{label}]" if label else name, value, pair, apart, figure.get("goal")))
    return found


def line(name: str, value: float, interval: Any, seeds: Any, goal: str | None) -> str:
    within = f"[{interval[0]:.4f}, {interval[1]:.4f}]" if interval else ""
    spread = "{:.4f} to {:.4f}".format(*seeds["spread"]) if seeds else ""
    return f"{name:<36} {value:8.4f}  {within:<18}  {spread:<18}  {verdict(value, interval, goal)}".rstrip()


def verdict(value: float, interval: Any, goal: str | None) -> str:
    if goal is None:
        return ""
    if not met(value, goal):
        return f"{goal}: missed"
    surely = interval is None or all(met(end, goal) for end in interval)
    return f"{goal}: met" if surely else f"{goal}: met, though not by all of the interval"


def write(figures: dict[str, dict], seeds: dict[str, Any], made_of: dict[str, Any], folder: Path) -> Path:
    return write_results(
        "curriculum", figures, folder=folder, intervals=INTERVAL, seeds=seeds, write_up=WRITE_UP, **made_of
    )
