"""The smallest recipe as a process of its own: killed and started again, and on two hosts."""

import random
import time

import numpy as np
import pytest

from curricula import runner
from curricula.features import Features
from tests.curricula.run import smoke
from tests.launch import ended, host_file, start

STAGES = ("rows", "domain", "harvest")
SECONDS = 9  # that a run takes, or a little less


def command(out, *more):
    return ["-m", "scripts.cli", "train", "smoke", "--out", str(out), "--wait", "30", *more]


def made(root):
    return {stage: runner.read(root / stage) for stage in STAGES}


def both(folder):
    """The run on two hosts, to its end; their folders."""
    file = host_file(folder)
    roots = [folder / f"host{rank}" for rank in range(2)]
    runs = [start(command(root), rank, file) for rank, root in enumerate(roots)]
    for code, said in map(ended, runs):
        assert code == 0, said
    return roots


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_and_started_again_it_makes_the_same_bits(seed, tmp_path):
    rng = random.Random(seed)
    for _ in range(2):
        run = start(command(tmp_path / "run"))
        time.sleep(rng.uniform(1, SECONDS))
        run.kill()
        ended(run)
    code, said = ended(start(command(tmp_path / "run")))
    assert code == 0, said
    assert made(tmp_path / "run") == made(smoke())


@pytest.mark.slow
def test_two_hosts_make_what_one_makes(tmp_path):
    """Each harvests half of the shards and is given the others; both end with the same files."""
    roots = both(tmp_path)
    one, two = (Features(root / "harvest", "test") for root in roots)
    for name in one.shards[0]:
        assert np.array_equal(one.whole(name), two.whole(name)), name
    first, second = made(roots[0]), made(roots[1])
    assert first["harvest"]["files"] == second["harvest"]["files"]


@pytest.mark.slow
def test_a_stage_that_is_whole_on_one_host_alone_is_finished_on_the_other(tmp_path):
    roots = both(tmp_path)
    before = made(roots[1])
    for name in ("manifest.json", "heads-0000.safetensors", "test-0001.safetensors"):
        (roots[1] / "harvest" / name).unlink()
    both(tmp_path)
    assert made(roots[1]) == before
