"""`agp bench decode --routed` on a run that lets all go: every way is timed, and lossless says what full depth says."""

import json
import time

import pytest

from curricula.documents import Prompt
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
    assert all(of["ways"].keys() == ways for of in told["sizes"].values())
    assert told["sizes"]["tiny"]["ways"]["early_0.01"]["early"] > 0.8, "all but the audited ones"
    assert set(told["figures"]) == {"lossless.speed_ratio", "early.speed_ratio_1pct", "early.speed_ratio_5pct"}
    assert "500M" in capsys.readouterr().out


def test_tokens_that_come_together_are_counted_with_the_time_they_took():
    def way(prompt, n):
        time.sleep(0.5)  # reads the prompt
        return made()

    def made():
        time.sleep(0.05)
        yield from [(1, True), (2, True), (3, False)]
        time.sleep(0.5)  # begins what nobody asks for

    (seconds, tokens, drafted), said = routed.timed(way, Prompt("code", "0", (1,), False, {}), 0)
    assert (tokens, said, drafted) == (3, [1, 2, 3], 2 / 3)
    assert 0.05 <= seconds < 0.5, "not only the time between the first and the last"
