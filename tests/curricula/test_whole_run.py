"""The smallest recipe as a process of its own: killed and started again, and on two hosts.

Seen to fail where hosts drop another part of a batch than one would, and tell other tokens apart.
"""

import json
import random
import shutil
import time

import numpy as np
import pytest

from agp.artifacts import write_results
from agp.states import BEST, STATE
from curricula import recipes, runner
from curricula.features import Features
from heads import depth, saved, trajectory
from tests.curricula.run import smoke
from tests.launch import arrays, ended, host_file, metrics, start

STAGES = tuple(stage.name for stage in recipes.stages(recipes.smoke()))
TAUGHT = ("rows", "domain", "harvest")  # what heads learn from
COMPARED = ("trajectory", "semantic", "depth", "transfer", "calibrate")
SECONDS, TRIALS, ALIKE = 25, 20, 1e-6


def command(out, *more):
    """In one process, unless it is told of hosts: a kill reaches no other."""
    return ["-m", "scripts.cli", "train", "smoke", "--out", str(out), "--wait", "60", "--processes", "1", *more]


def finished(*runs):
    for code, said in [ended(run, within=400) for run in runs]:
        assert code == 0, said


def made(root):
    return {stage: runner.read(root / stage) for stage in STAGES}


def both(folder, *more):
    """The run on two hosts, to its end; their folders."""
    file = host_file(folder)
    roots = [folder / f"host{rank}" for rank in range(2)]
    finished(*(start(command(root, *more), rank, file) for rank, root in enumerate(roots)))
    return roots


def begun(root):
    """A run whose heads are still to be trained."""
    for name in TAUGHT:
        shutil.copytree(smoke() / name, root / name)
    return root


def killed(root, rng, times, seconds):
    """Again and again, each time at another moment; then finished."""
    for _ in range(times):
        run = start(command(root))
        time.sleep(rng.uniform(1, seconds))
        run.kill()
        ended(run)
    finished(start(command(root)))
    assert not list(root.rglob(".*.part*")), "what a kill cut short is cleared away"
    return made(root)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_and_started_again_it_makes_the_same_bits(seed, tmp_path):
    assert killed(tmp_path / "run", random.Random(seed), 2, SECONDS / 2) == made(smoke())


@pytest.mark.prove
def test_killed_at_twenty_moments(tmp_path):
    began = time.perf_counter()
    finished(start(command(tmp_path / "whole")))
    seconds, whole = time.perf_counter() - began, made(tmp_path / "whole")
    rng = random.Random(0)
    same = sum(killed(tmp_path / f"trial{k}", rng, 1, seconds) == whole for k in range(TRIALS))
    command_ = "pytest -m prove tests/curricula/test_whole_run.py"
    figure = {"value": same, "goal": f">= {TRIALS}", "command": command_}
    write_results("curriculum-kill", {"curriculum.kill_resume_identical": figure}, trials=TRIALS, seeds=[0])
    assert same == TRIALS


@pytest.mark.slow
def test_two_hosts_make_what_one_makes(tmp_path):
    """Each harvests half of the shards and is given the others; both end with the same files."""
    roots = both(tmp_path)
    one, two = (Features(root / "harvest", "test") for root in roots)
    for name in one.shards[0]:
        assert np.array_equal(one.whole(name), two.whole(name)), name
    first, second = made(roots[0]), made(roots[1])
    for stage in STAGES[2:]:
        assert first[stage]["files"] == second[stage]["files"] and first[stage]["metrics"] == second[stage]["metrics"]


@pytest.mark.slow
def test_two_processes_train_the_heads_that_one_trains(tmp_path):
    """From the same harvest, to the bit: who shares a batch adds up the same halves."""
    assert {max(of.values()) for of in differences(tmp_path).values()} == {0}


@pytest.mark.prove
def test_two_processes_figure(tmp_path):
    found = differences(tmp_path)
    command_ = "pytest -m prove tests/curricula/test_whole_run.py"
    value = {name: max(of.values()) for name, of in found.items()}
    figure = {"value": value, "goal": f"<= {ALIKE:g}", "command": command_}
    write_results("curriculum-hosts", {"curriculum.two_process_difference": figure}, found=found, seeds=[0])
    assert max(value.values()) <= ALIKE


def differences(folder):
    """By stage: the largest share by which what two processes make is off what one makes."""
    one = begun(folder / "one")
    finished(start(command(one)))
    for rank in range(2):
        begun(folder / f"host{rank}")
    two = both(folder)[0]
    return {
        name: {stage: max(of(one / stage, two / stage)) for stage in COMPARED}
        for name, of in (("metrics", of_metrics), ("losses", of_losses), ("arrays", of_arrays))
    }


def of_metrics(one, two):
    ours, theirs = (dict(numbers(runner.read(root)["metrics"])) for root in (one, two))
    assert ours.keys() == theirs.keys() and len(ours) > 5
    return [off(ours[name], theirs[name]) for name in ours]


def of_losses(one, two):
    found = []
    for file in one.rglob("metrics.jsonl"):
        for a, b in zip(metrics(file.parent), metrics(two / file.parent.relative_to(one)), strict=True):
            assert a.get("count") == b.get("count")
            found += [off(a[name], b[name]) for name in a.keys() & {"loss", "held_loss"}]
    return found


def of_arrays(one, two):
    found = []
    for file in one.rglob("*.safetensors"):
        if file.name not in (STATE, BEST):
            ours, theirs = arrays(file), arrays(two / file.relative_to(one))
            assert ours.keys() == theirs.keys()
            found += [np.linalg.norm(ours[n] - theirs[n]) / (np.linalg.norm(ours[n]) + 1e-30) for n in ours]
    return [float(x) for x in found]


def off(a, b):
    return abs(a - b) / abs(a) if a else abs(b)


def numbers(found, at=""):
    """All that is a number in it, by where it stands."""
    if isinstance(found, dict | list):
        pairs = found.items() if isinstance(found, dict) else enumerate(found)
        return [pair for name, of in pairs for pair in numbers(of, f"{at}.{name}")]
    return [(at, float(found))] if isinstance(found, int | float) else []


@pytest.mark.slow
def test_four_streams_go_through_all_stages(tmp_path):
    """Gemma 3n, whose states are four; each may be mixed, and all are read."""
    finished(start(command(tmp_path, "--model", "tiny-gemma3n")))
    found = made(tmp_path)
    states = Features(tmp_path / "harvest", "test").shards[0]["hidden"]
    assert states.ndim == 4 and states.shape[2] == 4
    module = saved.settings(tmp_path / f"depth/module-{found['harvest']['config']['taps'][1]}/head.json", depth.Config)
    head = saved.settings(tmp_path / "trajectory/head.json", trajectory.Config)
    assert module.taps == 2 and head.width == 4 * head.dim
    assert found["calibrate"]["metrics"]["decisions"].keys() == {"accept", "revive", "escalate"}


@pytest.mark.slow
def test_a_stage_that_is_whole_on_one_host_alone_is_finished_on_the_other(tmp_path):
    more = ("--until", "harvest")
    roots = both(tmp_path, *more)
    before = {stage: runner.read(roots[1] / stage) for stage in TAUGHT}
    for name in ("manifest.json", "heads-0000.safetensors", "test-0001.safetensors"):
        (roots[1] / "harvest" / name).unlink()
    both(tmp_path, *more)
    assert {stage: runner.read(roots[1] / stage) for stage in TAUGHT} == before


@pytest.mark.slow
def test_what_one_host_lacks_the_other_is_told(tmp_path):
    """It would wait for it, and not know why."""
    file = host_file(tmp_path)
    lacks = [[], ["semantic.kernel=nosuch"]]
    runs = [start(command(tmp_path / f"{rank}", *lacks[rank]), rank, file) for rank in range(2)]
    (first, said), (second, why) = (ended(run, within=50) for run in runs)
    assert (first, second) == (2, 2)
    assert "host 1 cannot begin: semantic.kernel: nosuch is no file" in said and "semantic.kernel: nosuch is" in why


@pytest.mark.slow
def test_rows_that_name_no_concepts_go_through_all_stages(tmp_path):
    """As most people's rows are: all latents are free then, and the report has no concepts to show. Of text so strange
    to the model no state is good enough to leave at, and there is nothing to tell apart."""
    lines = [
        {
            "prompt": f"def add{n}(a, b): # order {7 * n % 100} plus {3 * n % 89}",
            "completion": f"return {n} for order {n}",
        }
        for n in range(150)
    ]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    root = tmp_path / "run"
    finished(start(command(root, "--data", str(tmp_path / "notes"))))
    metrics = made(root)["semantic"]["metrics"]
    assert metrics["concepts"] == 0 and 0 < metrics["variance_explained"] < 1 and metrics["auroc"] is None
    assert "none" in made(root)["trajectory"]["metrics"]["one_sided"].values()
    page = (root / "report.html").read_text()
    assert "no state of test is sufficient" in page and "another AGP made it" not in page
