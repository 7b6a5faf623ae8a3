"""Figures of a run over seeds of its heads: means, spreads and verdicts as said; bases linked, heads made again."""

import json
import shutil
from argparse import ArgumentParser
from dataclasses import replace

import pytest

from agp.figures import entries
from curricula import recipes, runner
from scripts.bench import curriculum
from scripts.bench.curriculum import joined, line, measured, read, seeded, verdict
from tests.curricula.run import smoke

ESTIMATE = {"value": 0.5, "interval": [0.4, 0.6]}


def test_metrics_are_read_in_each_form_that_stages_write():
    metrics = {
        "plain": 3,
        "drop": 0.3,
        "drop_interval": [0.2, 0.4],
        "share": ESTIMATE,
        "gain": {"4": ESTIMATE, "6": {"value": 1.0, "interval": [0.9, 1.1]}},
    }
    assert read(metrics, ("plain",)) == {"": (3, None)}
    assert read(metrics, ("drop",)) == {"": (0.3, [0.2, 0.4])}
    assert read(metrics, ("share",)) == {"": (0.5, [0.4, 0.6])}
    assert read(metrics, ("gain",)) == {"4": (0.5, [0.4, 0.6]), "6": (1.0, [0.9, 1.1])}
    assert read(metrics, ("gain", 0)) == {"": (0.5, [0.4, 0.6])}
    assert read(metrics, ("gain", "6")) == {"": (1.0, [0.9, 1.1])}
    assert read(metrics, ("none",)) is None


def test_a_value_is_the_mean_of_the_seeds_and_so_are_the_ends_of_its_interval():
    told = [{"4": (0.1, [0.0, 0.3])}, {"4": (0.2, [0.1, 0.3])}, {"4": (0.6, [0.5, 0.9])}]
    figure, seeds = joined(told, "> 0")
    assert figure["value"] == {"4": pytest.approx(0.3)}
    assert figure["interval"] == {"4": pytest.approx([0.2, 0.5])}
    assert seeds == {"4": {"seeds": [0.1, 0.2, 0.6], "spread": [0.1, 0.6]}}
    figure, seeds = joined([{"": (1, None)}, {"": (3, None)}], None)
    assert figure["value"] == 2 and not {"interval", "goal"} & figure.keys()
    assert seeds == {"seeds": [1, 3], "spread": [1, 3]}


@pytest.mark.parametrize(
    "value, interval, goal, said",
    [
        (0.1, [0.05, 0.2], "> 0", "> 0: met"),
        (0.1, [-0.05, 0.2], "> 0", "> 0: met, though not by all of the interval"),
        (-0.1, [-0.2, 0.2], "> 0", "> 0: missed"),
        (0.7, [0.6, 0.9], "<= 0.8", "<= 0.8: met, though not by all of the interval"),
        (0.7, None, "<= 0.8", "<= 0.8: met"),
        (0.7, None, None, ""),
    ],
)
def test_a_goal_is_held_against_the_whole_interval_too(value, interval, goal, said):
    assert verdict(value, interval, goal) == said
    assert line("a", value, interval, None, goal).endswith(said)


def test_a_figure_that_nobody_measured_is_left_out_and_the_others_can_be_read():
    stages = {wanted.stage: {} for wanted in curriculum.FIGURES.values()}
    of = [stages | {"semantic": {"auroc": x, "auroc_interval": [x - 0.1, x]}} for x in (0.9, 1.0)]
    figures, seeds = measured(of, minutes=7.5)
    assert figures.keys() == {"semantic.auroc", "tiny.minutes"} and seeds.keys() == {"semantic.auroc"}
    assert all(entries(name, figure) for name, figure in figures.items())


def test_only_heads_are_given_another_seed():
    stages = {stage.name: stage for stage in recipes.stages(recipes.tiny())}
    for name, stage in stages.items():
        other = seeded(stage, 2)
        if name not in curriculum.HEADS:
            assert other is stage
            continue
        assert other.config.fit.seed == 2 and getattr(other.config, "seed", 2) == 2 and not other.gate
        assert runner.made_of(other, {}) != runner.made_of(stage, {})
    assert set(curriculum.HEADS) < stages.keys()


def test_every_figure_of_tiny_is_measured_by_a_stage():
    """The smoke run is of all stages, and makes two codecs of the three."""
    stages = recipes.stages(recipes.smoke())
    metrics = {stage.name: runner.read(smoke() / stage.name)["metrics"] for stage in stages}
    assert curriculum.FIGURES.keys() - measured([metrics], None)[0].keys() == {"transfer.next_agreement_16x"}


def test_a_run_that_is_not_there_or_not_done_is_told_how_to_be_made(tmp_path):
    with pytest.raises(ValueError, match="--run DIR says where one is, and `agp train`"):
        curriculum.made_by(tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": "smoke"}))
    name, stages = curriculum.made_by(tmp_path)
    assert name == "smoke"
    with pytest.raises(ValueError, match="has not finished rows, domain, .*agp train smoke"):
        curriculum.manifests(tmp_path, name, stages)


def test_a_damaged_run_is_not_measured(tmp_path):
    root, stages = tmp_path / "run", recipes.stages(recipes.smoke())
    shutil.copytree(smoke(), root)
    assert curriculum.manifests(root, "smoke", stages).keys() == {stage.name for stage in stages}
    with (root / "harvest/test-0000.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(ValueError, match="harvest is damaged: test-0000.safetensors has other bytes"):
        curriculum.manifests(root, "smoke", stages)


@pytest.mark.slow
def test_two_seeds_of_a_run_share_its_base_and_differ_in_their_heads(tmp_path, capsys):
    root, other = tmp_path / "run", tmp_path / "run-seed1"
    for stage in recipes.stages(recipes.smoke()):
        curriculum.link(smoke() / stage.name, root / stage.name)
    (root / "recipe.json").write_text(json.dumps({"recipe": "smoke"}))
    parser = ArgumentParser()
    curriculum.add_arguments(parser)
    words = ["--run", str(root), "--seeds", "2"]
    curriculum.run(parser.parse_args(words))
    assert "not written" in capsys.readouterr().out
    harvested = [(folder / "harvest/test-0000.safetensors").stat() for folder in (root, other)]
    assert harvested[0].st_ino == harvested[1].st_ino
    written = runner.read(other / "calibrate")
    (other / "calibrate" / runner.MANIFEST).unlink()  # as if it had been broken off
    curriculum.run(parser.parse_args([*words, "--folder", str(tmp_path)]))
    assert runner.read(other / "calibrate") == written
    found = json.loads((tmp_path / "curriculum.json").read_text())
    assert all(entries(name, figure) for name, figure in found["figures"].items())
    for name in ("semantic.auroc", "transfer.next_agreement_4x", "calibrate.macro_f1"):
        first, second = found["seeds"][name]["seeds"]
        assert first != second and found["figures"][name]["value"] == pytest.approx((first + second) / 2)
    assert len(set(found["seeds"]["domain.loss_drop"]["seeds"])) == 1


def test_a_run_with_settings_of_its_own_is_not_measured():
    """Further seeds would be made with those of the recipe, and the mean would be of two kinds of runs."""
    recipe = recipes.smoke()
    stages = recipes.stages(replace(recipe, calibrate=replace(recipe.calibrate, grid=9)))
    with pytest.raises(ValueError, match="other settings than smoke has.*calibrate.grid is 9 and there 8"):
        curriculum.manifests(smoke(), "smoke", stages)
