"""`agp train domain` as a user runs it: a dry run, a run, an interruption, and the adapter in mlx-lm's hands."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import pytest

from agp.adapter_files import load
from agp.artifacts import alone
from agp.states import STATE
from scripts import cli
from tests.launch import training

MODEL = Path(__file__).parents[2] / "agp/assets/tiny-gemma4"


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notes")
    rows = [{"prompt": f"glorp {i % 7} {i}", "completion": f"zib {i} {i % 7}"} for i in range(60)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def command(notes, out, *more):
    return training(notes, out, 4, "fit.steps=6", "fit.evaluate_every=3", "fit.save_every=2", *more)[2:]


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(notes, tmp_path, capsys):
    assert cli.main([*command(notes, tmp_path / "run"), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "lora on 94 linears, 296,448 trained parameters" in shown.out
    assert "<|turn>model\n>>>zib 0 0<turn|>\n<<<" in shown.out
    assert "no valid.jsonl" in shown.err and "about" in shown.out
    assert not (tmp_path / "run").exists()


def test_it_trains_and_leaves_an_adapter_that_changes_the_model(notes, tmp_path, capsys):
    assert cli.main(command(notes, tmp_path / "run", "targets=mlp", "last=4", "kind=dora", "rank=4")) == 0
    assert f"adapter: {tmp_path / 'run/adapter'}" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    held = [row["held_loss"] for row in rows if "held_loss" in row]
    assert len(held) == 3 and held[-1] < held[0]
    saved = load(tmp_path / "run/adapter")
    assert saved.adapter.dora and len(saved.adapter.parts) == 12 and saved.about["base"] == str(MODEL)


@pytest.mark.slow
def test_interrupted_and_started_again_it_ends_in_the_same_weights(notes, tmp_path):
    def started(out):
        run = [sys.executable, "-m", "scripts.cli", *command(notes, out, "fit.steps=30", "fit.save_every=1000")]
        return subprocess.Popen(run, cwd=MODEL.parents[2], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    def ended(run):
        _, said = run.communicate()  # which closes the pipe as well
        return run.returncode, said

    assert ended(started(tmp_path / "whole"))[0] == 0
    broken = started(tmp_path / "broken")
    while (
        not (tmp_path / "broken/metrics.jsonl").exists()
        or len((tmp_path / "broken/metrics.jsonl").read_text().splitlines()) < 5
    ):
        time.sleep(0.05)
    broken.send_signal(signal.SIGINT)
    code, said = ended(broken)
    assert code == 130 and "the same command goes on" in said
    assert ended(started(tmp_path / "broken"))[0] == 0
    a, b = (mx.load(str(tmp_path / name / STATE)) for name in ("whole", "broken"))
    assert a.keys() == b.keys() and all(mx.array_equal(a[k], b[k]) for k in a)


WRONG = {
    "no model": (["--data", "{notes}"], "model is missing"),
    "no data": (["--model", str(MODEL)], "data is missing"),
    "no such folder": (["--model", str(MODEL), "--data", "nowhere"], "nowhere is no folder here"),
    "no such setting": (["--model", str(MODEL), "--data", "{notes}", "ranks=3"], "no setting ranks"),
    "no such set": (["--model", str(MODEL), "--data", "{notes}", "targets=all-linear"], "one of all, attention"),
    "two sources of one name": (
        ["--model", str(MODEL), "--data", "{notes}", "--data", "{notes}"],
        "several sources are called",
    ),
    "a source called loss": (["--model", str(MODEL), "--data", "loss={notes}"], "cannot be called 'loss'"),
    "no folder": (["--model", str(MODEL), "--data", "x="], "names no folder"),
    "a weight that is no number": (
        ["--model", str(MODEL), "--data", "a={notes}", "weights.a=nan"],
        "weights is {'a': nan}; a number above 0 is needed",
    ),
    "an alpha of nothing": (["--model", str(MODEL), "--data", "{notes}", "alpha=0"], "alpha is 0"),
    "a rate that is no number": (["--model", str(MODEL), "--data", "{notes}", "fit.rate=nan"], "rate is nan"),
    "columns of a folder": (
        ["--model", str(MODEL), "--data", "{notes}", "columns.prompt=question"],
        "all sources are folders here",
    ),
    "an endless wait": (["--model", str(MODEL), "--data", "{notes}", "--wait", "inf"], "--wait is inf"),
    "patience for nothing": (
        ["--model", str(MODEL), "--data", "one={one}", "fit.patience=2"],
        "fit.patience waits for a better held-out loss, and nothing is held out",
    ),
    "nothing to learn": (
        ["--model", str(MODEL), "--data", "n={notes}", "length=1"],
        "train on in n: n, train: 53 rows have more than 1 token",
    ),
    "no time to wait": (["--model", str(MODEL), "--data", "{notes}", "--wait", "-5"], "--wait is -5"),
    "a weight for nothing": (["--model", str(MODEL), "--data", "{notes}", "weights.x=2"], "weights name x"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_user_can_mend_is_one_line(name, notes, tmp_path, capsys):
    words, said = WRONG[name]
    (tmp_path / "one").mkdir()
    (tmp_path / "one/train.jsonl").write_text('{"text": "one document"}')
    words = [word.format(notes=notes, one=tmp_path / "one") for word in words]
    assert cli.main(["train", "domain", "--out", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.strip().splitlines()[-1].startswith("agp train: ")
    assert not (tmp_path / "run").exists()


def test_out_must_be_a_folder_and_that_is_said_first(notes, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/run"):
        assert cli.main(["train", "domain", "--model", "nowhere", "--data", str(notes), "--out", str(out)]) == 2
        assert f"--out {out}: {tmp_path / 'file'} is a file" in capsys.readouterr().err


def test_an_empty_out_is_not_the_folder_one_is_in(notes, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "domain", "--model", str(MODEL), "--data", str(notes), "--out", ""])
    assert "a folder is needed, and this is empty" in capsys.readouterr().err


def test_an_adapter_without_its_run_is_not_written_over(notes, tmp_path, capsys):
    (tmp_path / "run/adapter").mkdir(parents=True)
    assert cli.main(command(notes, tmp_path / "run")) == 2
    assert "holds an adapter and no run that made it" in capsys.readouterr().err


def test_two_runs_do_not_share_a_folder(notes, tmp_path, capsys):
    with alone(tmp_path / "run"):
        assert cli.main(command(notes, tmp_path / "run")) == 2
    assert "another run is using" in capsys.readouterr().err


def test_a_step_that_cannot_fit_is_not_tried(notes, tmp_path, capsys):
    words = command(notes, tmp_path / "run", "rows=10000000")
    assert cli.main([*words, "--dry-run"]) == 0
    assert re.search(r"a step would take about [\d.]+ GB, and [\d.]+ GB are there: fewer rows", capsys.readouterr().out)


def test_where_nothing_is_gained_no_adapter_is_written(notes, tmp_path, capsys):
    """What is held out is what the model knows best, and what it learns has nothing to do with it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").write_text((notes / "train.jsonl").read_text())
    row = {"prompt": "def f(self, x):", "completion": "\n        return self.x\n"}
    (tmp_path / "data/valid.jsonl").write_text(json.dumps(row))
    assert cli.main(command(tmp_path / "data", tmp_path / "run", "fit.rate=10", "fit.steps=3")) == 1
    assert "nothing was gained in 3 steps: the held-out loss was best before the first step" in capsys.readouterr().out
    assert not (tmp_path / "run/adapter").exists()
