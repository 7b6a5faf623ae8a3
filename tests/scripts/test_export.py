"""`agp export` and `agp verify` on a real run: what is whole passes anywhere, what was changed is named."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from curricula import runner
from export import blob, folder
from scripts import cli
from scripts.export import traps
from tests.curricula.run import smoke

pytestmark = pytest.mark.slow
SIZE = ("--room", "160", "--documents", "3", "--weights", "int8", "--from-bytes", "60000")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """As `agp train` leaves it."""
    root = tmp_path_factory.mktemp("runs") / "smoke"
    shutil.copytree(smoke(), root)
    (root / "recipe.json").write_text('{"recipe": "smoke"}')
    return root


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "heads"
    assert cli.main(["export", str(run), "--out", str(out), *SIZE]) == 0
    return out


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path / "heads")
    return tmp_path / "heads"


def test_an_export_is_whole_and_proves_itself_again(made, run, capsys):
    assert {path.name for path in made.iterdir()} == {
        *(folder.PACKAGE, folder.ASSET, folder.SAMPLE, folder.MANIFEST, folder.CARD, folder.VERIFICATION),
        folder.smaller("int8"),
    }
    told = json.loads((made / folder.MANIFEST).read_text())
    assert told["outputs"]["many"]["vitality"] == 4 and told["inputs"]["one"]["states"] == [4 * 192, 1]
    assert len(told["states"]["blocks"]) == 12 and set(told["states"]["taps"]) == {
        str(tap) for tap in told["decisions"]["taps"]
    }
    assert told["smaller"]["int8"]["bytes"] < sum(of.bytes for of in blob.blobs(made / folder.PACKAGE))
    assert 15 < min(told["smaller"]["int8"]["psnr"].values()) < 60
    assert [of["name"] for of in told["decisions"]["concepts"]] and told["recipe"] == "smoke"
    assert cli.main(["verify", str(made), "--run", str(run)]) == 0
    said = capsys.readouterr().out
    checks = "package asset sample weights inference zeros ranges lint int8 stages thresholds described"
    for name in f"{checks} mlx twins exact half coreai".split():
        assert any(line.startswith(name) and line.endswith(": ok") for line in said.splitlines()), name


def test_a_turned_bit_of_a_weight_is_named(copy, capsys):
    path = copy / folder.PACKAGE / blob.WEIGHTS
    data = bytearray(path.read_bytes())
    data[blob.blobs(copy / folder.PACKAGE)[0].offset + 1] ^= 0x10
    path.write_bytes(data)
    assert cli.main(["verify", str(copy)]) == 1
    said = capsys.readouterr().out
    assert "package    its digest is " in said and "weights are as they were described: not" in said


def test_a_threshold_that_is_not_the_runs_is_named(copy, run, capsys):
    told = json.loads((copy / folder.MANIFEST).read_text())
    told["decisions"]["accept"]["0.05"] = 1.25
    (copy / folder.MANIFEST).write_text(json.dumps(told))
    assert cli.main(["verify", str(copy)]) == 2
    assert "manifest.json was changed: its digest is " in capsys.readouterr().err
    folder.write(copy, told)  # as it would be of a run that was calibrated again
    assert cli.main(["verify", str(copy), "--run", str(run)]) == 1
    assert "thresholds accept.0.05 is " in capsys.readouterr().out


def test_a_turned_bit_of_smaller_weights_is_named(copy, capsys):
    package = copy / folder.smaller("int8")
    data = bytearray((package / blob.WEIGHTS).read_bytes())
    data[blob.blobs(package)[0].offset] ^= 1
    (package / blob.WEIGHTS).write_bytes(data)
    assert cli.main(["verify", str(copy)]) == 1
    assert "int8       its digest is " in capsys.readouterr().out


def test_a_turned_bit_of_the_asset_is_named_and_it_is_not_opened(copy, capsys):
    path = copy / folder.ASSET / "main.mlirb"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    assert cli.main(["verify", str(copy)]) == 1
    said = capsys.readouterr().out
    assert "asset      main.mlirb has not the bytes that main.hash tells of: FAIL" in said and "coreai " not in said


def test_equal_exports_have_equal_digests_in_other_processes(made, run, tmp_path):
    command = [sys.executable, "-m", "scripts.cli", "export", str(run), "--out", str(tmp_path / "again"), *SIZE]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "7"}, check=True, capture_output=True)
    one, two = (json.loads((path / folder.MANIFEST).read_text()) for path in (made, tmp_path / "again"))
    differ = {name for name in one if one[name] != two[name]}
    assert differ <= {"made"}


BROKEN = {
    "heads.mlpackage/Data/com.apple.CoreML/model.mlmodel": "model.mlmodel cannot be read: it was cut short, or changed",
    "heads.mlpackage/Data/com.apple.CoreML/weights/weight.bin": "no weight begins, where one should",
    "sample.safetensors": "sample.safetensors cannot be read: ",
    "manifest.json": "manifest.json cannot be read: ",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_was_cut_short_or_is_absent_is_said_in_one_line(name, copy, capsys):
    os.truncate(copy / name, 1000)
    assert cli.main(["verify", str(copy)]) == 2
    assert BROKEN[name] in capsys.readouterr().err
    (copy / name).unlink()
    assert cli.main(["verify", str(copy)]) == 2
    assert (
        f"has no {name}; export the run again" in (said := capsys.readouterr().err) or "holds no manifest.json" in said
    )


@pytest.mark.parametrize("trap", traps.TRAPS, ids=lambda trap: trap.name)
def test_every_known_trap_is_caught_by_name(trap, made, run):
    found = traps.caught(trap, made, run)
    assert found.caught, found


def refused(words, capsys):
    assert cli.main(["export", *words]) == 2
    return capsys.readouterr().err


def test_what_the_user_can_mend_is_said_in_one_line(made, run, tmp_path, capsys):
    assert "exists already; give a new folder" in refused([str(run), "--out", str(made)], capsys)
    assert "--room is 0; 1 or more is needed" in refused([str(run), "--room", "0"], capsys)
    told = refused([str(run), "--weights", "palette", "--out", str(tmp_path / "x")], capsys)
    assert "--weights palette: the largest weight of this run has " in told
    assert "is no run of a recipe; `agp runs` lists" in refused([str(tmp_path)], capsys)
    assert "the program has room for 4 keys, and each text has more" in refused([str(run), "--room", "4"], capsys)
    assert not (run / "export").exists() and not list(run.glob(".export*"))
    assert cli.main(["verify", str(run)]) == 2
    assert "holds no manifest.json; `agp export RUN` makes such a folder" in capsys.readouterr().err
    assert cli.main(["verify", str(made), "--run", str(tmp_path)]) == 2
    assert "is not the run that this was made of: it has no stage rows" in capsys.readouterr().err


def test_a_run_whose_gates_are_not_passed_is_exported_for_a_reason_alone(run, tmp_path, capsys):
    root = tmp_path / "smoke"
    shutil.copytree(run, root)
    manifest = runner.read(root / "trajectory")
    runner.write(root / "trajectory", manifest | {"gate": {"auroc_worst": ">= 2"}})
    assert 'trajectory (its gate is closed). Export it all the same with --past-gates "why"' in refused(
        [str(root)], capsys
    )
    (root / "depth/manifest.json").unlink()
    assert "is not whole: depth (begun). `agp train smoke --out" in refused([str(root)], capsys)
