"""A figure is read whole or refused; the table shows every one, missed goals included."""

import json

import pytest

from agp.artifacts import RESULTS
from agp.figures import entries, met
from scripts import cli
from scripts.figures import collect, table

COMMAND = {"command": "agp bench decode"}


def put(folder, topic, **figures):
    (folder / f"{topic}.json").write_text(json.dumps({"figures": figures}))


@pytest.mark.parametrize(
    "goal, met_by, missed_by",
    [
        ("<= 1.25", 1.25, 1.26),
        (">= 8", 8, 7),
        ("< 3e-5", 2e-5, 3e-5),
        ("> -1", 0, -1),
        ("== 0", 0, 1),
        (">=1.0", 1, 0.9),
    ],
)
def test_a_goal_is_met_or_missed(goal, met_by, missed_by):
    assert met(met_by, goal) and not met(missed_by, goal)


@pytest.mark.parametrize("goal", ["about 3", "<= x", "=< 3", "<= 3 seconds", ""])
def test_a_goal_that_cannot_be_read_is_refused(goal):
    with pytest.raises(ValueError, match="goal"):
        entries("x", {"value": 1, "goal": goal, **COMMAND})


def test_a_goal_holds_for_each_of_several_values():
    figure = {"value": {"tiny": 1.1, "100M": 0.9}, "interval": {"tiny": [1, 1.2]}, "goal": ">= 1.0", **COMMAND}
    tiny, large = entries("decode.ratio", figure)
    assert (tiny.name, tiny.verdict, tiny.interval) == ("decode.ratio[tiny]", "met", [1, 1.2])
    assert (large.name, large.verdict, large.interval) == ("decode.ratio[100M]", "missed", None)


@pytest.mark.parametrize(
    "figure, says",
    [
        ({"value": 1}, "no command"),
        (COMMAND, "no value"),
        ({"value": None, **COMMAND}, "value None"),
        ({"value": True, **COMMAND}, "value True"),
        ({"value": "3", **COMMAND}, "value '3'"),
        ({"value": 1, "interval": [2, 1], **COMMAND}, "not \\[low, high\\]"),
        ({"value": 1, "interval": 2, **COMMAND}, "not \\[low, high\\]"),
        ({"value": {"a": 1}, "interval": [0, 2], **COMMAND}, "one interval for several"),
    ],
)
def test_what_is_no_figure_is_refused(figure, says):
    with pytest.raises(ValueError, match=says):
        entries("x", figure)


def test_the_table_is_sorted_aligned_and_keeps_missed_goals(tmp_path):
    put(tmp_path, "b", slow={"value": 2.0, "goal": "<= 1", "interval": [1.9, 2.123456], "proxy": True, **COMMAND})
    put(tmp_path, "a", fast={"value": 0.5, "goal": "<= 1", **COMMAND}, plain={"value": 3, **COMMAND})
    lines = table(collect(tmp_path)).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["fast", "plain", "slow"]
    assert {line.index("agp bench") for line in lines[1:4]} == {lines[0].index("command")}
    assert "2*" in lines[3] and "[1.9, 2.123]" in lines[3] and "missed" in lines[3]
    assert "1 met, 1 missed, 1 no goal" in lines and "* measured off a Mac" in lines


def test_check_fails_only_on_a_missed_goal(tmp_path, capsys):
    put(tmp_path, "a", fast={"value": 0.5, "goal": "<= 1", **COMMAND})
    assert cli.main(["figures", "--check", "--folder", str(tmp_path)]) == 0
    put(tmp_path, "b", slow={"value": 2.0, "goal": "<= 1", **COMMAND})
    assert cli.main(["figures", "--folder", str(tmp_path)]) == 0
    assert cli.main(["figures", "--check", "--folder", str(tmp_path)]) == 1
    assert cli.main(["figures", "--check", "--only", "fast", "--folder", str(tmp_path)]) == 0
    assert "missed" in capsys.readouterr().out


def test_one_figure_has_one_home(tmp_path):
    put(tmp_path, "a", x={"value": 1, **COMMAND})
    put(tmp_path, "b", x={"value": 2, **COMMAND})
    with pytest.raises(ValueError, match="figure x is in both a.json and b.json"):
        collect(tmp_path)


def test_a_broken_file_is_named(tmp_path, capsys):
    (tmp_path / "bad.json").write_text("{")
    assert cli.main(["figures", "--folder", str(tmp_path)]) == 2
    assert "bad.json: not JSON" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("[]")
    assert cli.main(["figures", "--folder", str(tmp_path)]) == 2
    assert "bad.json holds no object with figures" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text('{"figures": {"x": {}}}')
    assert cli.main(["figures", "--folder", str(tmp_path)]) == 2
    assert "bad.json: figure x has no value; has no command" in capsys.readouterr().err


def test_a_prefix_of_no_figure_is_an_error(capsys):
    assert cli.main(["figures", "--only", "zzz"]) == 2
    assert "no figure begins with 'zzz'; they begin with calibrate, curriculum, " in capsys.readouterr().err


def test_an_empty_folder_has_no_figures_yet(tmp_path):
    assert "no figures yet" in table(collect(tmp_path))


def test_the_committed_figures_can_be_read():
    collect(RESULTS)
