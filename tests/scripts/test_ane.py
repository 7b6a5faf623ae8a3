"""`agp bench ane` on a machine that stands in for a Mac: its units sleep known times, its plan was recorded."""

import json
from pathlib import Path

import pytest

from agp.figures import entries
from export.plan import planned
from export.verify import DEVICE
from scripts import cli
from scripts.bench import ane
from tests.export.test_latency import Sleeps
from tests.export.test_plan import plan

SECONDS = {"CPU_ONLY": 0.001, "CPU_AND_NE": 0.002, "CPU_AND_GPU": 0.003, "ALL": 0.002}
FEEDS = {"one": ["a"], "many": ["b", "c"]}


class Machine:
    def __init__(self, chip="Apple M4 Pro"):
        self.chip, self.opened = chip, []

    def compile(self, package, folder):
        assert Path(folder).is_dir()
        return Path(folder) / "heads.mlmodelc"

    def open(self, compiled, entry, unit):
        self.opened.append((entry, unit))
        return Sleeps([SECONDS[unit]], first=0.02)

    def plan(self, compiled, entry, unit):
        return planned(plan(), entry)

    def brand(self):
        return self.chip


@pytest.fixture
def found(monkeypatch):
    monkeypatch.setattr(ane, "BACK", (2, 20, 0.0))
    monkeypatch.setattr(ane, "PACED", (1, 5, 0.01))
    machine = Machine()
    found = ane.measured(Path("heads.mlpackage"), FEEDS, machine, 20)
    assert machine.opened == [(entry, unit) for entry in FEEDS for unit in DEVICE]
    return found


def test_every_entry_on_every_unit_is_timed_with_its_first_call_apart(found):
    assert [(row["entry"], row["unit"]) for row in found["rows"]] == [(e, u) for e in FEEDS for u in DEVICE]
    for row in found["rows"]:
        sleeps = 1e3 * SECONDS[row["unit"]]
        assert row["first_seconds"] > 0.02 and row["caller"]["calls"] == 20 and row["paced_caller"]["calls"] == 5
        assert row["caller"]["p50"] >= sleeps and row["framework"]["p50"] == pytest.approx(sleeps / 2)
    assert found["floor_ms"] == 0.095 and len(found["plans"]) == 4 * len(DEVICE)


def test_a_table_and_a_result_with_its_goal(found, tmp_path, capsys):
    said = ane.told(found)
    assert "Apple M4 Pro" in said and "planned with CPU_AND_NE: NE 50.0%, CPU 50.0% of operations" in said
    assert "  1 erf on CPU: cannot run there" in said and "  1 add on CPU: could run there" in said
    args = type("Args", (), {"export": Path("export"), "folder": tmp_path})
    result = json.loads(ane.write(found, args).read_text())
    (ratio,) = entries("ane.floor_ratio", result["figures"]["ane.floor_ratio"])
    assert ratio.value == pytest.approx(1.0 / 0.095) and ratio.verdict == "missed"
    assert result["chip"] == "Apple M4 Pro" and result["environment"]["machine"]


def test_a_chip_of_which_nothing_is_published_has_no_goal(monkeypatch, tmp_path):
    monkeypatch.setattr(ane, "BACK", (0, 1, 0.0))
    found = ane.measured(Path("x"), {"one": ["a"]}, Machine("Apple M9"), 1)
    args = type("Args", (), {"export": Path("export"), "folder": tmp_path})
    assert set(json.loads(ane.write(found, args).read_text())["figures"]) == {"ane.p50_ms"} and not found["floor_ms"]


def test_off_a_mac_it_says_why_and_what_is_to_be_expected():
    said = ane.expected({"one": 4_300_000})
    assert said.startswith("estimate, from published floors") and "nothing was measured here" in said
    assert said.count("4.3 MB") == 3


def test_what_is_wrong_is_said(tmp_path, capsys):
    assert cli.main(["bench", "ane", str(tmp_path)]) == 2
    assert "holds no manifest.json; `agp export RUN` makes such a folder" in capsys.readouterr().err
    assert cli.main(["bench", "ane", str(tmp_path), "--calls", "0"]) == 2
    assert "--calls is 0; 1 or more is needed" in capsys.readouterr().err
