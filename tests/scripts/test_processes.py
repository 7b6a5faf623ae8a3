"""A recipe by two processes of this machine: what each says, what is handed over, how it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curricula import runner
from tests.launch import ROOT

pytestmark = pytest.mark.slow


def begin(*words):
    command = [sys.executable, "-m", "scripts.cli", "train", "smoke", "--processes", "2", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)


def train(*words):
    out, err = (run := begin(*words)).communicate(timeout=300)
    return run.returncode, out, err


def test_two_processes_make_one_run_and_what_one_lost_is_handed_to_it(tmp_path):
    out = tmp_path / "run"
    code, said, err = train("--out", str(out), "--until", "harvest")
    assert code == 0 and said.count("harvest: ") == 1, err
    first, second = (runner.read(place / "harvest") for place in (out, out / ".host-1"))
    assert first["files"] == second["files"]
    shutil.rmtree(out / ".host-1/domain"), shutil.rmtree(out / "harvest")
    before = json.loads((out / ".host-1/harvest/times.json").read_text())
    code, said, err = train("--out", str(out), "--until", "harvest")
    assert code == 0 and "domain: whole already" in said and "harvest: whole already" in said, err
    assert runner.state(out / "harvest", thorough=True) == runner.state(out / ".host-1/domain", thorough=True)
    assert json.loads((out / ".host-1/harvest/times.json").read_text()) == before
    assert not list(tmp_path.rglob(".manifest.json"))


def test_what_goes_wrong_is_said_once(tmp_path):
    """By one of them, whether it was found before they began or by both at work."""
    wrong = {"domain.rank=0": "rank is 0; 1 or more", "gates.rows.heads=> 1e9": "the gate of rows is closed"}
    for setting, said in wrong.items():
        code, _, err = train("--out", str(tmp_path / "run"), "--until", "rows", setting)
        assert code == 2 and err.count(said) == 1 and "Traceback" not in err
    assert train("--out", str(tmp_path / "run"), "--processes", "0")[0] == 2


def test_a_process_that_was_killed_is_named(tmp_path):
    run = begin("--out", str(tmp_path / "run"))
    log = tmp_path / "run/.host-1/log"
    while not (tmp_path / "run/rows/manifest.json").exists() or not log.exists():
        assert run.poll() is None
        time.sleep(0.1)
    for child in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split():
        if ".host-1" in Path(f"/proc/{child}/cmdline").read_text():
            os.kill(int(child), signal.SIGKILL)
    _, err = run.communicate(timeout=300)
    assert run.returncode == 128 + signal.SIGKILL
    assert "process 1 was ended by SIGKILL, as a system does that runs out" in err


@pytest.mark.parametrize("ignored", [False, True])
def test_processes_whose_starter_was_killed_stop(ignored, tmp_path):
    """Also where Ctrl-C is ignored, as of what a script runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignored else None
    run = begin("--out", str(tmp_path / "run"))
    if ignored:
        signal.signal(signal.SIGINT, before)
    while not (tmp_path / "run/rows/manifest.json").exists():
        assert run.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) == 2
    run.kill()
    run.communicate()
    for _ in range(60):
        if not [child for child in children if Path(f"/proc/{child}").exists()]:
            break
        time.sleep(1)
    else:
        raise AssertionError("still at work")
    assert runner.state(tmp_path / "run/calibrate") == "not begun"


@pytest.mark.parametrize("whom", [os.killpg, os.kill], ids=["a terminal", "a supervisor"])
def test_ctrl_c_stops_them_all_and_what_goes_on_ends_in_the_same_files(whom, tmp_path):
    """Of a terminal it reaches all that it started, of a supervisor the starter alone."""
    words = ["--until", "domain", "domain.fit.steps=6", "domain.fit.log_every=1"]
    run = begin("--out", str(tmp_path / "run"), *words)
    steps = tmp_path / "run/domain/metrics.jsonl"
    while not steps.exists() or '"step": 2,' not in steps.read_text():
        assert run.poll() is None
        time.sleep(0.02)
    whom(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 130 and "stopped" in err
    assert not (tmp_path / "run/domain/manifest.json").exists()
    for name in ("run", "straight"):
        assert train("--out", str(tmp_path / name), *words)[0] == 0
    went_on, straight = (runner.read(tmp_path / name / "domain") for name in ("run", "straight"))
    assert went_on["digest"] == straight["digest"]
