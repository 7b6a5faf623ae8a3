"""What prompt and answer cost together is counted as anyone would by hand, and hangs on a run's own thresholds."""

import json
import shutil

import pytest

from agp.macs import Macs
from scripts import cli
from scripts.bench.mission import composite
from tests.curricula.run import smoke


def test_four_tokens_that_are_read_and_one_that_is_made_by_hand():
    count = Macs(inputs=10, blocks=(100, 100, 200), head=50)
    found = composite(count, 2, {"value": 0.5, "interval": [0.4, 1.0]})
    assert found["value"] == pytest.approx((4 * 210 + 0.5 * 460) / (4 * 410 + 460))
    assert found["interval"][1] == pytest.approx((4 * 210 + 460) / (4 * 410 + 460))
    assert found["read"] == pytest.approx(210 / 410)
    nothing = composite(count, 3, {"value": 1.0, "interval": [1.0, 1.0]})
    assert nothing["value"] == nothing["read"] == 1


@pytest.mark.slow
def test_a_run_is_calibrated_again_and_counted(tmp_path, capsys):
    root = tmp_path / "smoke"
    shutil.copytree(smoke(), root)
    (root / "recipe.json").write_text('{"recipe": "smoke"}')
    before = (root / "calibrate/manifest.json").read_bytes()
    assert cli.main(["bench", "mission", "--runs", str(root), "--folder", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "mission.json").read_text())
    of = told["runs"]["smoke"]
    assert of["interval"][0] <= of["value"] <= of["interval"][1] and of["read"] < of["value"]
    assert of["known beforehand"] <= of["value"]
    assert told["figures"]["mission.certified_macs"]["value"] == {"smoke": of["value"]}
    assert "of full depth: " in capsys.readouterr().out and (root / "calibrate/manifest.json").read_bytes() == before
    assert cli.main(["bench", "mission", "--runs", str(tmp_path)]) == 2
    assert "there is no run in " in capsys.readouterr().err
