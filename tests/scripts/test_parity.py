"""`agp parity`: what it needs it says, and what was compared stands in one table."""

import subprocess
import sys

import pytest

from scripts import cli, parity
from tests.parity.conftest import row


def test_what_is_absent_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parity, "JUDGES", ("pytest", "no_such_judge"))
    assert cli.main(["parity"]) == 2
    assert "no_such_judge: not installed; `pip install -e '.[test]'`" in capsys.readouterr().err
    monkeypatch.setattr(parity, "ROOT", tmp_path)
    assert cli.main(["parity"]) == 2
    assert "agp parity runs from a checkout" in capsys.readouterr().err


@pytest.mark.slow
def test_what_was_compared_is_shown_by_file():
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "tests/parity/test_heads.py", "-k", "glance"]
    done = subprocess.run(command, cwd=parity.ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stdout
    table = done.stdout.partition("parity with PyTorch")[2].splitlines()
    assert [line.split()[:2] for line in table[2:3]] == [["heads", "2"]] and table[2].endswith("facts: ok")


def test_a_row_fails_with_its_worst_comparison_or_with_a_test():
    one, other = ("near", 1e-7, 1.0, True), ("far", 1e-2, 0.9, False)
    assert row("heads", [one], 0).endswith("near: ok") and row("heads", [one], 1).endswith("near: FAIL")
    assert row("heads", [one, other], 0).split() == ["heads", "2", "1.0e-02", "0.900000000", "far:", "FAIL"]
