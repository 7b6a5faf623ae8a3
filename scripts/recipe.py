"""What `agp train RECIPE` does: the stages of a recipe one after another, in one folder."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from agp import data
from agp.artifacts import RESULTS, alone, unwritable, write_json
from agp.bounds import outside
from agp.figures import met
from agp.hosts import announced, joined, told
from agp.models.decoder import Decoder
from agp.models.folder import HUB_ID, find, stated
from agp.overrides import from_file, override
from agp.text import open_tokenizer
from agp.train import METRICS
from curricula import estimate, estimate_heads, recipes, runner
from curricula.recipes import Recipe
from curricula.report.collect import ABOUT, parsed, runs_in
from curricula.report.collect import rows as logged
from curricula.stages import rows
from scripts import processes
from scripts.asked import all_named
from scripts.machine import MAC, Machine, here

GB = 1e9
REPEATED = "model data config dtype quantize table wait until again past_gate why after out".split()  # options
SAMPLE = 200  # rows by which letters are counted to a token
SPANS = ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h"), (float("inf"), 86_400, "days"))


def run(args, name: str) -> int:
    recipe = asked_for(args, name)
    root = args.out or Path("runs") / name
    if wrong := unwritable(root):
        raise ValueError(f"--out {root}: {wrong}")
    if (args.past_gate is None) != (args.why is None):
        raise ValueError("--past-gate STAGE and --why TEXT go together: a gate is passed for a reason, which is kept")
    stages = recipes.stages(recipe)
    runner.check(stages)
    if wrong := astray(args, [stage.name for stage in stages]):
        raise ValueError("; ".join(wrong))
    wrong = faulty(recipe) + other(root, name)
    lacking = wrong + missing(recipe, args.after or root.parent / recipe.after)
    hosts, count = told(), processes.usual() if args.processes is None else args.processes
    if args.dry_run:
        kept = stages[: [stage.name for stage in stages].index(args.again)] if args.again else stages
        lacking += runner.changed(kept, root)
        return preview(recipe, stages, root, lacking, sound=not wrong, copies=1 if hosts else max(count, 1))
    past = None if args.past_gate is None else runner.Past(args.past_gate, args.why)
    with announced(hosts, args.wait):  # what is wrong here may be right on the others
        if not lacking and unknown(recipe.domain.model):
            find(recipe.domain.model, recipe.domain.revision)
            lacking = faulty(recipe)
        if lacking:
            raise ValueError("; ".join(lacking))
    if count < 1:
        raise ValueError(f"--processes is {count}; 1 or more is needed")
    if hosts is None and count > 1:
        return processes.run(count, [name, *again(args)], root)
    with announced(hosts, args.wait):
        settings = {stage.name: runner.made_of(stage, {}) for stage in stages}
    processes.alone_if_left()
    first = hosts is None or not hosts.rank
    with joined(hosts, {"recipe": name, "settings": settings}, args.wait) as group, alone(root):
        if args.again:
            runner.aside(stages, root, args.again)
        write_json(root / ABOUT, {"recipe": name, "stages": [stage.name for stage in stages]})
        say = print if first else lambda text: None
        try:
            runner.run(stages, root, group=group, until=args.until, past=past, say=say)
        except runner.GateClosed:
            if first:
                reported(args)
            raise
    if first:
        print(f"{name}: all{f' up to {args.until}' if args.until else ''} is in {root}")
        reported(args)
    return 0


def other(root: Path, name: str) -> list[str]:
    """Whether the folder holds a run of another recipe."""
    was = (parsed(root / ABOUT, []) or {}).get("recipe", name)
    return [] if was == name else [f"{root} holds a run of {was}, and {name} is asked for: give another --out"]


def astray(args, names: list[str]) -> list[str]:
    """What is wrong with the stages that were named, before anything is set aside for them."""
    asked = {"--from": args.again, "--until": args.until, "--past-gate": args.past_gate}
    wrong = [
        f"{option} {stage}: there is no such stage; the stages are {', '.join(names)}"
        for option, stage in asked.items()
        if stage is not None and stage not in names
    ]
    if not wrong and args.again and args.until and names.index(args.again) > names.index(args.until):
        wrong.append(f"--from {args.again} comes after --until {args.until}: nothing would be made")
    return wrong


def again(args) -> list[str]:
    """What was asked for, as it would be typed, but by how many processes."""
    named = {"again": "from"}
    found = list(args.settings)
    for key in REPEATED:
        value = getattr(args, key)
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            found += [f"--{named.get(key, key).replace('_', '-')}", str(one)]
    return found


def reported(args) -> None:
    """The page of this run, in the folder that was given; or of all runs in runs/."""
    from scripts import report  # matplotlib takes a second, and other verbs read this file

    folder = args.out or Path("runs")
    try:
        print(f"report: {report.write(runs_in(folder), folder / report.PAGE, RESULTS)}")
    except (OSError, ValueError) as e:
        print(f"no report: {e}", file=sys.stderr)  # the run is as good without; what else is wrong is said after this


def asked_for(args, name: str) -> Recipe:
    """The recipe with what was given on the command line and in a file."""
    recipe: Recipe = getattr(recipes, name)()
    after = recipe.after
    if args.config:
        recipe = from_file(recipe, args.config)
    given = {key: getattr(args, key) for key in ("model", "dtype", "quantize", "table")}
    given = {key: value for key, value in given.items() if value is not None}
    recipe = replace(recipe, domain=replace(recipe.domain, **given))
    if args.data:  # the weights were those of made rows
        own = replace(recipe.rows, data=all_named(args.data), made={})
        recipe = replace(recipe, rows=own, domain=replace(recipe.domain, weights={}))
    recipe = override(recipe, args.settings)
    if recipe.after != after:
        raise ValueError(
            f"after={recipe.after}: that is no setting; --after DIR says where the run lies that comes before"
        )
    if args.after and not after:
        raise ValueError(f"--after is of recipes that come after another, and {name} does not; leave it out")
    return recipe


def missing(recipe: Recipe, before: Path) -> list[str]:
    """What must be there before anything starts."""
    absent = not_passed(recipe.after, before) if recipe.after else []
    if not recipe.rows.data and not recipe.rows.made:
        how = "rows of your own, --data DIR with train.jsonl in it (docs/your-own-data.md)"
        absent.insert(0, f"rows.data is missing: {how}")
    return absent


def faulty(recipe: Recipe) -> list[str]:
    """Settings that make no sense, by themselves or for this model."""
    wrong = recipes.faults(recipe)
    if outside(recipe) or unknown(recipe.domain.model):
        return wrong
    try:
        return wrong + recipes.unfit(recipe, shaped(recipe))
    except ValueError as e:
        return [*wrong, f"domain.model: {e}"]


def unknown(model: str) -> bool:
    """Whether nothing of it is here, though it may be on the Hub."""
    try:
        stated(model)
    except ValueError:
        return bool(HUB_ID.fullmatch(model)) and not Path(model).exists()
    return False


def not_passed(name: str, root: Path) -> list[str]:
    """What keeps a run of the recipe `name` from having passed all its gates."""
    mend = f"run `agp train {name} --data DIR --out {root}`, or say where such a run is: --after DIR"
    if not (root / ABOUT).exists():
        return [f"a run of {name} must have passed all its gates first, and there is none in {root}: {mend}"]
    said = []
    for stage in recipes.stages(getattr(recipes, name)()):
        found = runner.state(root / stage.name)
        if found == "whole":  # by the recipe's own gates: those of the run may have been eased
            metrics = runner.read(root / stage.name)["metrics"]
            short = [
                name for name, goal in stage.gate.items() if metrics.get(name) is None or not met(metrics[name], goal)
            ]
            found = "; ".join(f"{name} is {metrics.get(name)}, not {stage.gate[name]}" for name in short) or found
        said += [] if found == "whole" else [f"{stage.name} ({found})"]
    return [f"{root} has not passed all gates of {name}: {', '.join(said)}; {mend}"] if said else []


def shaped(recipe: Recipe) -> Decoder:
    given, _ = stated(recipe.domain.model, recipe.domain.revision)
    return estimate.shaped(given, recipe.domain.quantize)


def preview(
    recipe: Recipe, stages: list[runner.Stage], root: Path, lacking: list[str], sound: bool, copies: int
) -> int:
    """Stages and gates; then what they would take, where so many processes each keep what was made."""
    for stage in stages:
        gate = ", ".join(f"{name} {goal}" for name, goal in stage.gate.items()) or "no gate"
        print(f"{stage.name:<12} {runner.state(root / stage.name):<24} {gate}")
    if sound:
        try:
            takes(recipe, stages, root, copies)
        except ValueError as e:
            print(f"\nwhat they take is not estimated: {e}")
            lacking = lacking + ([] if unknown(recipe.domain.model) else [str(e)])
    if lacking:
        print("\nIt would not start:", *(f"- {fault}" for fault in lacking), sep="\n")
    return int(bool(lacking))


def takes(recipe: Recipe, stages: list[runner.Stage], root: Path, copies: int) -> None:
    """A table of memory, disk and time, on a Mac as assumed and here."""
    model, work = shaped(recipe), observed(recipe, root)
    machines = [MAC, here(recipe.domain, shaped(recipe))]
    found = [
        estimate.costs(recipe, model, work, machine.room, machine.number)
        | estimate_heads.costs(recipe, model, work, machine.room, machine.number)
        for machine in machines
    ]
    known = "" if stated(recipe.domain.model, recipe.domain.revision)[1] else " (not here: by its public config)"
    print(f"\nWhat they take, estimated for {recipe.domain.model}{known}; {work.note}\n")
    print(
        f"{'':<12} {'disk':>9}"
        + "".join(f" | {machine.name + ': memory':>18} {'time left':>9}" for machine in machines)
    )
    for stage in stages:
        if (name := stage.name) in found[0]:
            columns = [column(stage, costs[name], of, root) for costs, of in zip(found, machines, strict=True)]
            print(f"{name:<12} {sized(found[0][name].disk):>9}" + "".join(columns))
        elif name != "rows":
            print(f"{name:<12} not estimated")
    print("", *(f"{name}: {told}" for name, cost in found[0].items() for told in cost.shapes), "", sep="\n")
    for costs, machine in zip(found, machines, strict=True):
        print(f"{machine.name}: {verdict(costs, machine)}\n  {machine.about}")
    needed, free = copies * sum(cost.disk for cost in found[0].values()), shutil.disk_usage(parent(root)).free
    each = f", a copy for each of {copies} processes" if copies > 1 else ""
    print(f"disk: {sized(needed)} in all{each}, {sized(free)} are free here{'' if needed < free else ': TOO LITTLE'}")


def column(stage: runner.Stage, cost: estimate.Cost, machine: Machine, root: Path) -> str:
    share = left(stage, cost, root / stage.name)
    return f" | {sized(cost.memory):>18} {spanned(share * cost.macs / machine.rate) if share else '-':>9}"


def left(stage: runner.Stage, cost: estimate.Cost, out: Path) -> float:
    """The share of a stage that is still to be done: by steps where it has some, else by what has been written."""
    if (out / runner.MANIFEST).exists():
        return 0
    if not hasattr(stage.config, "fit"):
        return max(0, 1 - sum(path.stat().st_size for path in out.glob("*.safetensors")) / cost.disk)
    found = logged(out / METRICS, []) if (out / METRICS).exists() else []
    return 1 - max((row["step"] for row in found), default=0) / stage.config.fit.steps


def verdict(costs: Mapping[str, estimate.Cost], machine: Machine) -> str:
    most = max(cost.memory for cost in costs.values())
    fits = "fits" if most <= machine.room else "DOES NOT FIT"
    return f"{fits}: {sized(most)} at the peak, and a model may take {sized(machine.room)}"


def observed(recipe: Recipe, root: Path) -> estimate.Work:
    """The rows there are, or as many as there may be."""
    there = runner.state(root / "rows") == "whole"
    remote = any(data.on_hub(where) for where in recipe.rows.data.values())
    if not there and (remote or not recipe.rows.data and not recipe.rows.made):
        return estimate.assumed(recipe)
    own = replace(recipe.rows, general={})  # those are few, and take long to make
    given = {role: rows.read(root / "rows", role) for role in rows.ROLES} if there else rows.understood(own)
    config, folder = stated(recipe.domain.model, recipe.domain.revision)
    tokenizer = open_tokenizer(folder, config) if folder is not None else None
    some = [row for of in given["test"].values() for row in of[:SAMPLE]]
    if tokenizer is None or not some:
        return estimate.counted(recipe, given, estimate.LETTERS)
    texts = [row.text + "".join(str(turn.get("content")) for turn in row.messages) for row in some]
    return estimate.counted(recipe, given, sum(map(len, texts)) / sum(len(tokenizer.encode(text)) for text in texts))


def parent(root: Path) -> Path:
    """The lowest folder above that there is."""
    return root if root.exists() else parent(root.absolute().parent)


def sized(count: float) -> str:
    return f"{count / GB:,.1f} GB" if count >= GB / 10 else f"{count / 1e6:,.1f} MB"


def spanned(seconds: float) -> str:
    most, unit, name = next(span for span in SPANS if seconds < span[0])
    return f"{seconds / unit:,.{int(unit >= 3600)}f} {name}"
