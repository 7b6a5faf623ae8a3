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
from tests.curricula.run import SIZE, exported

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run():
    return exported()[0]


@pytest.fixture(scope="module")
def made():
    return exported()[1]


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
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert cli.main(["verify", str(made), "--run", str(run)]) == 0
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before, "who reads writes nothing"
    said = capsys.readouterr().out
    checks = "files package asset sample weights manifest gates inference zeros ranges lint largest int8"
    checks += " stages passed thresholds described states"
    for name in f"{checks} mlx twins exact half coreai".split():
        assert any(line.startswith(name) and line.endswith(": ok") for line in said.splitlines()), name


def turned(package):
    """One bit of its first weight."""
    path = package / blob.WEIGHTS
    data = bytearray(path.read_bytes())
    data[blob.blobs(package)[0].offset + 1] ^= 0x10
    path.write_bytes(data)


def verified(words, capsys):
    """What is wrong, by its name."""
    assert cli.main(["verify", *map(str, words)]) == 1
    lines = capsys.readouterr().out.splitlines()
    wrong = {line.split()[0]: line for line in lines if line.endswith(": FAIL")}
    assert lines[-1].startswith(f"{len(wrong)} of ") and all(name in lines[-1] for name in wrong)
    return wrong


def signed(folder_, **change):
    """As if it were what was meant."""
    folder.write(folder_, folder.manifest(folder_) | change)


def test_a_turned_bit_of_a_weight_is_named(copy, capsys):
    turned(copy / folder.PACKAGE)
    wrong = verified([copy], capsys)
    assert set(wrong) == {"files"} and f"{folder.PACKAGE}/{blob.WEIGHTS} has other bytes" in wrong["files"]
    signed(copy)
    wrong = verified([copy], capsys)
    assert set(wrong) == {"package", "weights"} and "weights are as they were described: not" in wrong["weights"]


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
    turned(copy / folder.smaller("int8"))
    assert set(verified([copy], capsys)) == {"files"}
    signed(copy)
    wrong = verified([copy], capsys)
    assert set(wrong) == {"int8"} and "int8       its digest is " in wrong["int8"]


def test_a_turned_bit_of_the_asset_is_named_and_it_is_not_opened(copy, capsys):
    path = copy / folder.ASSET / "main.mlirb"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    assert set(verified([copy], capsys)) == {"files"}
    signed(copy)
    wrong = verified([copy], capsys)
    assert set(wrong) == {"asset"} and "main.mlirb has not the bytes that main.hash tells of" in wrong["asset"]


def edited(path):
    path.write_text(path.read_text().replace("true", "false", 1) + " ")


SPOILED = {
    "card.md": edited,
    "verification.json": edited,
    "sample.safetensors": lambda path: os.truncate(path, 1000),
    "heads.aimodel/metadata.json": lambda path: path.unlink(),
    "heads.mlpackage/Manifest.json": lambda path: path.unlink(),
    "heads.mlpackage/Data/com.apple.CoreML/model.mlmodel": lambda path: os.truncate(path, 0),
    "heads.mlpackage/Data/com.apple.CoreML/weights": shutil.rmtree,
}


@pytest.mark.parametrize("name", SPOILED)
def test_every_file_of_an_export_is_watched_and_one_that_is_spoiled_is_not_read(name, copy, capsys):
    SPOILED[name](copy / name)
    wrong = verified([copy], capsys)
    assert set(wrong) == {"files"} and f"{name}" in wrong["files"]
    assert cli.main(["bench", "ane", str(copy)]) == 2
    assert "is damaged: " in (said := capsys.readouterr().err) and "copy the folder again" in said
    if name.startswith(folder.PACKAGE):
        assert cli.main(["lint", str(copy / folder.PACKAGE)]) == 2
        assert folder.PACKAGE in (said := capsys.readouterr().err) and said.count("\n") < 3


def test_a_manifest_that_says_what_is_not_so_is_found_out_though_it_is_signed(copy, run, capsys):
    told = folder.manifest(copy)
    signed(copy, ties=told["ties"] | {"route": 1e9})
    assert "says other ties than there are" in verified([copy], capsys)["manifest"]
    signed(copy, ties=told["ties"], largest={})
    assert set(verified([copy], capsys)) == {"largest"}
    states = told["states"] | {"blocks": [0.0, *told["states"]["blocks"][1:]]}
    signed(copy, largest=told["largest"], states=states, gates=told["gates"] | {"depth": "past its gate: so"})
    wrong = verified([copy, "--run", run], capsys)
    assert set(wrong) == {"passed", "states"} and "depth is 'whole' and was 'past its gate: so'" in wrong["passed"]


def test_equal_exports_have_equal_digests_in_other_processes(made, run, tmp_path):
    command = [sys.executable, "-m", "scripts.cli", "export", str(run), "--out", str(tmp_path / "again"), *SIZE]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "7"}, check=True, capture_output=True)
    one, two = (json.loads((path / folder.MANIFEST).read_text()) for path in (made, tmp_path / "again"))
    differ = {name for name in one if one[name] != two[name]}
    assert differ <= {"made", "files", "digest"}  # some files tell the day, or name weights by chance


@pytest.mark.parametrize("stage, name", [("semantic", "head.safetensors"), ("calibrate", "thresholds.json")])
def test_a_run_with_one_byte_changed_is_neither_exported_nor_believed(stage, name, made, run, tmp_path, capsys):
    root = tmp_path / "smoke"
    shutil.copytree(run, root)
    (path,) = (root / stage).rglob(name)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    assert f"{stage} (damaged: " in refused([str(root), "--out", str(tmp_path / "x")], capsys)
    wrong = verified([made, "--run", root], capsys)
    assert set(wrong) == {"run"} and f"{name} has other bytes than were written" in wrong["run"]


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
    assert "recipe.json is a file; a run's folder is needed" in refused([str(run / "recipe.json")], capsys)
    assert "--room is 2,000,000; the engine takes 16,384" in refused([str(run), "--room", "2000000"], capsys)
    assert "--documents is 2; 3 or more is needed" in refused([str(run), "--documents", "2"], capsys)
    assert "--past-gates says no reason" in refused([str(run), "--past-gates", " "], capsys)
    assert "the program has room for 4 keys, and each text has more" in refused([str(run), "--room", "4"], capsys)
    assert not (run / "export").exists() and not list(run.glob(".export*"))
    assert cli.main(["verify", str(run)]) == 2
    assert "holds no manifest.json; `agp export RUN` makes such a folder" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not there; the folder of an export is needed" in capsys.readouterr().err
    assert cli.main(["verify", str(made), "--run", str(tmp_path)]) == 2
    assert "is not the run that this was made of: it has no stage rows" in capsys.readouterr().err


def test_a_run_whose_gates_are_not_passed_is_exported_for_a_reason_alone(run, tmp_path, capsys):
    root = tmp_path / "smoke"
    shutil.copytree(run, root)
    manifest = runner.read(root / "trajectory")
    runner.write(root / "trajectory", manifest | {"gate": {"auroc_worst": ">= 2"}})
    told = refused([str(root)], capsys)
    assert "trajectory (its gate is closed; auroc_worst is " in told and ", and >= 2 is needed). Export it all" in told
    (root / "depth/manifest.json").unlink()
    assert "is not whole: depth (begun). `agp train smoke --out" in refused([str(root)], capsys)
