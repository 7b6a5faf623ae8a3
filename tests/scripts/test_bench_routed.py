"""`agp bench decode --routed` on a run that lets all go: every way is timed, and lossless says what full depth says."""

import json

import pytest

from scripts import cli
from scripts.bench import routed
from tests.scripts.test_routes import lax

COUNT = 3


@pytest.mark.slow
def test_every_way_is_timed_at_every_width(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(routed, "WIDTHS", {"tiny": (1, COUNT), "100M": (2, COUNT), "500M": (1, COUNT)})
    (tmp_path / "run").mkdir()
    run = lax(tmp_path / "run")
    assert cli.main(["bench", "decode", "--routed", run, "--folder", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "routed.json").read_text())
    assert {of["same"] for of in told["sizes"].values()} == {COUNT}
    assert told["sizes"]["100M"]["parameters"] > 3 * told["sizes"]["tiny"]["parameters"]
    ways = {"full", "mlx-lm", "lossless", "early_0.01", "early_0.05"}
    assert all(of["ways"].keys() == ways and of["timed"] for of in told["sizes"].values())
    assert told["sizes"]["tiny"]["ways"]["early_0.01"]["early"] > 0.8, "all but the audited ones"
    assert set(told["figures"]) == {"lossless.speed_ratio", "early.speed_ratio_1pct", "early.speed_ratio_5pct"}
    assert "500M" in capsys.readouterr().out
