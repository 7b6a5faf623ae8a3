"""`agp train RECIPE` and `agp runs`, as they are typed."""

import json
import shutil

import pytest

from scripts import cli
from tests.curricula.run import smoke

STAGES = ["rows", "domain", "harvest"]


@pytest.fixture
def made(tmp_path):
    shutil.copytree(smoke(), tmp_path / "runs/smoke")
    return tmp_path / "runs/smoke"


def train(*words):
    return cli.main(["train", *words])


def test_a_whole_run_is_not_made_again(made, capsys):
    assert train("smoke", "--out", str(made)) == 0
    said = capsys.readouterr().out
    assert all(f"{stage}: whole already" in said for stage in STAGES) and f"smoke: all is in {made}" in said


def test_runs_lists_what_there_is_and_how_far_it_is(made, capsys):
    assert train("smoke", "--out", str(made), "--until", "rows") == 0
    (made / "harvest/manifest.json").unlink()
    capsys.readouterr()
    assert cli.main(["runs", "--folder", str(made.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("smoke  (smoke)")
    assert [line.split()[:2] for line in lines[1:]] == [["rows", "whole"], ["domain", "whole"], ["harvest", "begun"]]


def test_runs_sees_a_flipped_byte_if_asked_to_look(made, capsys):
    assert train("smoke", "--out", str(made), "--until", "rows") == 0
    path = made / "harvest/test-0000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert cli.main(["runs", "--folder", str(made.parent)]) == 0
    assert cli.main(["runs", "--folder", str(made.parent), "--check"]) == 1
    assert "damaged: test-0000.safetensors has other bytes" in capsys.readouterr().out
    assert train("smoke", "--out", str(made)) == 2
    assert "harvest is damaged: test-0000.safetensors has other bytes than were written" in capsys.readouterr().err


def test_no_runs_is_no_error(tmp_path, capsys):
    assert cli.main(["runs", "--folder", str(tmp_path)]) == 0
    assert "no runs in" in capsys.readouterr().out


def test_a_dry_run_says_what_would_be_done_and_makes_nothing(tmp_path, capsys):
    assert train("tiny", "--out", str(tmp_path / "run"), "--dry-run") == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()] == STAGES and "loss_drop >= 0.25" in said
    assert not (tmp_path / "run").exists()


def test_a_stage_made_again_keeps_the_old_one_beside(made, capsys):
    assert train("smoke", "--out", str(made), "--from", "rows", "--until", "rows") == 0
    assert {path.name for path in made.iterdir() if path.is_dir()} == {"rows", "rows.1", "domain.1", "harvest.1"}


def test_a_closed_gate_may_be_passed_for_a_reason(made, tmp_path, capsys):
    shutil.rmtree(made / "domain"), shutil.rmtree(made / "harvest"), shutil.rmtree(made / "rows")
    (tmp_path / "gates.toml").write_text('gates.rows.heads = ">= 1e9"\n')
    words = ["smoke", "--out", str(made), "--until", "rows", "--config", str(tmp_path / "gates.toml")]
    assert train(*words) == 2
    assert "the gate of rows is closed" in capsys.readouterr().err
    assert train(*words, "--past-gate", "rows", "--why", "a trial") == 0
    manifest = json.loads((made / "rows/manifest.json").read_text())
    assert manifest["past_gate"]["why"] == "a trial"


WRONG = {
    "no such recipe": (["tyni"], "tyni: one of tiny, tiny3n, smoke, domain is needed"),
    "two recipes": (["tiny", "smoke"], "tiny smoke: one of"),
    "no such setting": (["smoke", "domain.ranks=3"], "no setting domain.ranks"),
    "no such stage to end at": (["smoke", "--until", "depht"], "there is no stage depht; the stages are rows, domain"),
    "no such stage to begin at": (["smoke", "--from", "x"], "there is no stage x"),
    "a gate without a reason": (["smoke", "--past-gate", "rows"], "--past-gate NAME and --why TEXT go together"),
    "rows made and read": (["smoke", "--data", "x=nowhere"], "nowhere is no folder here"),
    "an end where there is none": (["domain", "--until", "rows"], "--until is of recipes; leave it out"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_user_can_mend_is_one_line(name, tmp_path, capsys):
    words, said = WRONG[name]
    assert train(*words, "--out", str(tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert said in error and error.strip().splitlines()[-1].startswith("agp train: ")


def test_another_setting_is_refused_with_what_changed(made, capsys):
    assert train("smoke", "--out", str(made), "domain.rank=4") == 2
    assert "config.rank was 8 and is 4" in capsys.readouterr().err
