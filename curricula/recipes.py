"""Recipes: the stages of a run in order, with settings and gates; the big ones differ from `tiny` in these alone."""

from dataclasses import dataclass, field, replace

from agp.train import FitConfig
from curricula.runner import Stage
from curricula.stages import adapt, domain, harvest, rows

NAMES = ("tiny", "tiny3n", "smoke")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    rows: rows.Config
    domain: domain.Config
    harvest: harvest.Config
    gates: dict[str, dict[str, str]] = field(default_factory=dict)  # of each stage


def stages(recipe: Recipe) -> list[Stage]:
    def stage(name, run, config, *needs, **more):
        return Stage(name=name, run=run, config=config, needs=needs, gate=recipe.gates.get(name, {}), **more)

    return [
        stage("rows", rows.run, recipe.rows, given=rows.given, places=("data",)),
        stage("domain", adapt.run, recipe.domain, "rows", given=adapt.given, places=adapt.PLACES),
        stage("harvest", harvest.run, recipe.harvest, "rows", "domain"),
    ]


def tiny() -> Recipe:
    """The whole curriculum on the tiny Gemma 4 that is shipped, in minutes on two cores."""
    return Recipe(
        rows=rows.Config(
            made={"train": 150, "valid": 8, "heads": 160, "tune": 40, "calibrate": 130, "test": 75},
            general={"train": 60, "valid": 2, "test": 20},
        ),
        domain=domain.Config(
            model="tiny-gemma4",
            weights={"conversation": 4, "code": 4, "memory": 1, "source": 1, "general": 2},
            length=128,
            rows=16,
            fit=FitConfig(steps=60, rate=3e-3, warmup=5, evaluate_every=20),
        ),
        harvest=harvest.Config(taps=(4, 6, 8, 10), windows=(1200, 120, 300, 200)),
        gates={
            "domain": {"loss_drop": ">= 0.25", "general_drop": "<= 2"},
            "harvest": {"test_positions": ">= 10000", "calibrate_documents": ">= 1000", "adapter_change": "> 0"},
        },
    )


def tiny3n() -> Recipe:
    """The same on the tiny Gemma 3n."""
    recipe = tiny()
    return replace(recipe, domain=replace(recipe.domain, model="tiny-gemma3n"))


def smoke() -> Recipe:
    """Every stage in seconds, for tests: too little to be any good."""
    recipe = tiny()
    return replace(
        recipe,
        rows=rows.Config(
            made={"train": 4, "valid": 1, "heads": 3, "tune": 1, "calibrate": 2, "test": 2},
            general={"train": 2, "valid": 1, "test": 1},
        ),
        domain=replace(recipe.domain, rows=8, held_rows=4, fit=FitConfig(steps=2, rate=3e-3, evaluate_every=2)),
        harvest=replace(recipe.harvest, windows=(8, 2, 4, 4), answer=6, noises=1, omissions=1, shard=16, compared=4),
        gates={},
    )
