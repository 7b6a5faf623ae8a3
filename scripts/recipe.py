"""What `agp train RECIPE` does: the stages of a recipe one after another, in one folder."""

import sys
from dataclasses import replace
from pathlib import Path

from agp.artifacts import alone, unwritable, write_json
from agp.hosts import announced, joined, told
from agp.overrides import from_file, override
from curricula import recipes, runner
from curricula.recipes import Recipe
from scripts.asked import all_named

ABOUT = "recipe.json"


def run(args, name: str) -> int:
    recipe = asked_for(args, name)
    root = args.out or Path("runs") / name
    if wrong := unwritable(root):
        raise ValueError(f"--out {root}: {wrong}")
    if (args.past_gate is None) != (args.why is None):
        raise ValueError("--past-gate NAME and --why TEXT go together: a gate is passed for a reason, which is kept")
    stages = recipes.stages(recipe)
    runner.check(stages)
    if args.dry_run:
        return preview(stages, root)
    past = None if args.past_gate is None else runner.Past(args.past_gate, args.why)
    hosts = told()
    with announced(hosts, args.wait):
        settings = {stage.name: runner.made_of(stage, {}) for stage in stages}
    first = hosts is None or not hosts.rank
    with joined(hosts, {"recipe": name, "settings": settings}, args.wait) as group, alone(root):
        if args.again:
            runner.aside(stages, root, args.again)
        write_json(root / ABOUT, {"recipe": name, "stages": [stage.name for stage in stages]})
        say = print if first else lambda text: None
        runner.run(stages, root, group=group, until=args.until, past=past, say=say)
    if first:
        print(f"{name}: all is in {root}")
    return 0


def asked_for(args, name: str) -> Recipe:
    """The recipe with what was given on the command line and in a file."""
    recipe: Recipe = getattr(recipes, name)()
    if args.config:
        recipe = from_file(recipe, args.config)
    given = {key: getattr(args, key) for key in ("model", "dtype", "quantize", "table")}
    given = {key: value for key, value in given.items() if value is not None}
    recipe = replace(recipe, domain=replace(recipe.domain, **given))
    if args.data:
        recipe = replace(recipe, rows=replace(recipe.rows, data=all_named(args.data), made={}))
    return override(recipe, args.settings)


def preview(stages: list[runner.Stage], root: Path) -> int:
    for stage in stages:
        gate = ", ".join(f"{name} {goal}" for name, goal in stage.gate.items()) or "no gate"
        print(f"{stage.name:<12} {runner.state(root / stage.name):<24} {gate}", file=sys.stdout)
    return 0
