"""Recipes: the stages of a run in order, with settings and gates; the big ones differ from `tiny` in these alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agp.bounds import outside
from agp.models.decoder import Decoder
from agp.peak import streams_of
from agp.train import FitConfig
from curricula import gates
from curricula.runner import Stage
from curricula.stages import adapt, calibrate, depth, domain, harvest, rows, semantic, trajectory, transfer

NAMES = ("tiny", "tiny3n", "smoke", "gemma4_e2b", "gemma3n_e2b", "gemma4_e4b")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    rows: rows.Config
    domain: domain.Config
    harvest: harvest.Config
    trajectory: trajectory.Config
    semantic: semantic.Config
    depth: depth.Config
    transfer: transfer.Config
    calibrate: calibrate.Config
    after: str = ""  # a recipe that must have passed all its gates before this one begins
    gates: dict[str, dict[str, str]] = field(default_factory=dict)  # of each stage


def stages(recipe: Recipe) -> list[Stage]:
    def stage(name, run, config, *needs, **more):
        return Stage(name=name, run=run, config=config, needs=needs, gate=recipe.gates.get(name, {}), **more)

    outside = {"given": semantic.given, "places": semantic.PLACES}
    return [
        stage("rows", rows.run, recipe.rows, given=rows.given, places=("data",)),
        stage("domain", adapt.run, recipe.domain, "rows", given=adapt.given, places=adapt.PLACES),
        stage("harvest", harvest.run, recipe.harvest, "rows", "domain"),
        stage("trajectory", trajectory.run, recipe.trajectory, "domain", "harvest"),
        stage("semantic", semantic.run, recipe.semantic, "rows", "domain", "harvest", **outside),
        stage("depth", depth.run, recipe.depth, "domain", "harvest"),
        stage("transfer", transfer.run, recipe.transfer, "domain", "harvest"),
        stage("calibrate", calibrate.run, recipe.calibrate, "domain", "harvest", "trajectory", "depth"),
    ]


def faults(recipe: Recipe) -> list[str]:
    """What can be known to be wrong before anything starts, each setting by its whole name."""
    learned = replace(recipe.domain, data=dict.fromkeys(rows.sources(recipe.rows), ""))
    elsewhere = ["data is no setting of a recipe; --data DIR gives rows of your own"] if recipe.domain.data else []
    special = {
        "rows": rows.faults(recipe.rows),
        "domain": elsewhere + domain.faults(learned),
        "harvest": harvest.faults(recipe.harvest),
        "trajectory": trajectory.faults(recipe.trajectory),
        "calibrate": calibrate.faults(recipe.calibrate),
    }
    known = gates.measured(rows.ROLES, harvest.ROLES, recipe.transfer.ratios)
    return outside(recipe) + named(special) + gates.faults(recipe.gates, known, [s.name for s in stages(recipe)])


def unfit(recipe: Recipe, model: Decoder) -> list[str]:
    """Settings that this model has no room for, where each is sound by itself."""
    special = {
        "domain": adapt.unfit(recipe.domain, model),
        "trajectory": trajectory.unfit(recipe.trajectory, model),
        "depth": depth.faults(recipe.depth, model),
    }
    try:
        taps = harvest.chosen(recipe.harvest, model)
    except ValueError as e:
        return named(special | {"harvest": [str(e)]})
    width = streams_of(model.config) * model.config.hidden_size
    more = {
        "semantic": semantic.faults(recipe.semantic, taps),
        "transfer": transfer.faults(recipe.transfer, taps, width),
    }
    return named(special | more)


def named(wrong: Mapping[str, list[str]]) -> list[str]:
    return [f"{stage}.{fault}" for stage, faults in wrong.items() for fault in faults]


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
            fit=FitConfig(steps=60, rate=3e-3, warmup=5, evaluate_every=30),
        ),
        harvest=harvest.Config(taps=(4, 6, 8, 10), windows=(1200, 120, 300, 200)),
        trajectory=trajectory.Config(),
        semantic=semantic.Config(tap=6),
        depth=depth.Config(),
        transfer=transfer.Config(),
        calibrate=calibrate.Config(),
        gates={
            "domain": {"loss_drop": ">= 0.25", "general_drop": "<= 2"},
            "harvest": {"test_positions": ">= 10000", "calibrate_documents": ">= 1000", "adapter_change": "> 0"},
            "trajectory": {"auroc_worst": ">= 0.85", "auroc_gain_least": "> 0", "vitality_gain": "> 0"},
            "semantic": {
                "auroc": ">= 0.95",
                "variance_explained": ">= 0.92",
                "spliced_agreement": ">= 0.93",
                "l0": "<= 32",
                "dead": "<= 0.05",
                "margin_over_random": ">= 0.05",
            },
            "depth": {"gain_first": ">= 0.1", "gain_surely": "> 0", "cost": "< 1"},
            "transfer": {
                "next_agreement_4x": ">= 0.985",
                "next_agreement_8x": ">= 0.97",
                "next_agreement_16x": ">= 0.955",
                "greedy16_agreement_4x": ">= 0.95",
                "kl_by_pca_token_16x": "<= 0.9",
            },
            "calibrate": {"violations": "<= 0.15", "broken": "<= 0", "macs_first": "< 1"},
        },
    )


def tiny3n() -> Recipe:
    """The same on the tiny Gemma 3n, whose states say most of what they know only to who looks at many tokens."""
    recipe = tiny()
    return replace(
        recipe,
        domain=replace(recipe.domain, model="tiny-gemma3n"),
        trajectory=replace(recipe.trajectory, glance=1536),
        depth=replace(recipe.depth, width=16),
        semantic=replace(recipe.semantic, tap=4, fit=replace(recipe.semantic.fit, steps=300, evaluate_every=150)),
        gates=recipe.gates | {"semantic": recipe.gates["semantic"] | {"spliced_agreement": ">= 0.9"}},  # four streams
    )


def smoke() -> Recipe:
    """Every stage in seconds, for tests: too little to be any good."""
    recipe = tiny()
    return replace(
        recipe,
        rows=rows.Config(
            made={"train": 4, "valid": 1, "heads": 3, "tune": 1, "calibrate": 2, "test": 2},
            general={"train": 2, "valid": 1, "test": 1},
            pieces=12,
        ),
        domain=replace(recipe.domain, rows=8, held_rows=4, fit=FitConfig(steps=2, rate=3e-3, evaluate_every=2)),
        harvest=replace(recipe.harvest, windows=(8, 2, 4, 4), answer=6, noises=1, omissions=1, shard=16, compared=4),
        trajectory=trajectory.Config(fit=brief(recipe.trajectory.fit), batch=64),
        semantic=semantic.Config(
            tap=8, least=2, width=192, picks=4, each=7, rows=128, fit=FitConfig(steps=60, rate=1e-2, evaluate_every=30)
        ),
        depth=depth.Config(fit=brief(recipe.depth.fit), width=16),
        transfer=transfer.Config(ratios=(4, 8), measured=12, greedy=8, rows=64, fit=brief(recipe.transfer.fit)),
        calibrate=calibrate.Config(fit=brief(recipe.calibrate.fit), batch=64, grid=8, resplits=4),
        gates={},
    )


def brief(fit: FitConfig) -> FitConfig:
    return replace(fit, steps=2, evaluate_every=2)


def gemma4_e2b() -> Recipe:
    """The curriculum on Gemma 4 E2B and rows of your own: on a Mac with 16 GB, a day or so."""
    recipe = tiny()
    return replace(
        recipe,
        rows=rows.Config(),
        domain=domain.Config(
            model="google/gemma-4-E2B-it",
            quantize=4,
            length=512,
            rows=2,
            fit=FitConfig(steps=400, rate=2e-4, warmup=20, accumulate=4, evaluate_every=100, save_every=25),
        ),
        harvest=harvest.Config(
            taps=(14, 19, 24, 29),
            window=64,
            windows=(2000, 200, 1200, 1200),
            turns=(2000, 200, 1200, 1200),
            answer=32,
            shard=16,
            together=16,
            compared=16,
        ),
        trajectory=trajectory.Config(glance=4096, hidden=64, fit=replace(recipe.trajectory.fit, steps=1500, rate=1e-3)),
        semantic=semantic.Config(
            tap=19, least=20, width=12_288, fit=FitConfig(steps=500, rate=3e-3, warmup=20, evaluate_every=100)
        ),
        depth=depth.Config(
            width=2048, vocabulary=8192, documents=8, fit=replace(recipe.depth.fit, steps=4000, rate=5e-4, warmup=100)
        ),
        transfer=transfer.Config(sensed=400, measured=400, greedy=128),
        calibrate=calibrate.Config(fit=replace(recipe.calibrate.fit, steps=600, rate=1e-3)),
        gates=recipe.gates
        | {
            "domain": {"loss_drop": ">= 0.05", "general_drop": "<= 2"},
            "semantic": {"spliced_agreement": ">= 0.9", "l0": "<= 32", "dead": "<= 0.05"},  # your rows may name nothing
            "transfer": {"next_agreement_4x": ">= 0.95", "kl_by_pca_token_16x": "<= 1"},
        },
    )


def gemma3n_e2b() -> Recipe:
    """The same on Gemma 3n E2B, whose states are four streams: fewer of them, for they fill the disk."""
    recipe = gemma4_e2b()
    return replace(
        recipe,
        domain=replace(recipe.domain, model="google/gemma-3n-E2B-it", rows=1, fit=longer(recipe.domain.fit)),
        semantic=replace(recipe.semantic, tap=20, width=12_288, rows=128),
        harvest=replace(
            recipe.harvest, taps=(19, 20, 23, 26), windows=(1200, 120, 1050, 800), turns=(1200, 120, 1050, 800)
        ),
    )


def gemma4_e4b() -> Recipe:
    """Phase two: Gemma 4 E4B, once all gates of E2B are passed."""
    recipe = gemma4_e2b()
    return replace(
        recipe,
        after="gemma4_e2b",
        domain=replace(recipe.domain, model="google/gemma-4-E4B-it", rows=1, fit=longer(recipe.domain.fit)),
        semantic=replace(recipe.semantic, tap=26, width=16_384, rows=128),
        harvest=replace(
            recipe.harvest, taps=(23, 26, 29, 35), windows=(1600, 160, 1050, 1000), turns=(1600, 160, 1050, 1000)
        ),
    )


def longer(fit: FitConfig) -> FitConfig:
    """The same batch, in micro-batches half as large."""
    return replace(fit, accumulate=2 * fit.accumulate)
