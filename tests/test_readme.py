"""What the README and the pages show runs as it stands there, as far as it can without a model that must be fetched."""

import json
import re
import shlex
from pathlib import Path

import pytest

from agp.data import LAYOUTS, understood
from curricula import recipes
from curricula.stages import rows
from scripts import cli

ROOT = Path(__file__).parents[1]
README, OWN_DATA = ROOT / "README.md", ROOT / "docs/your-own-data.md"
COMMAND = re.compile(r"^    (?:\.venv/bin/mlx\.launch [^\n]*\\\n\s+)?(?:\.venv/bin/)?agp (.*)$", re.MULTILINE)
COMMANDS = [shlex.split(words, comments=True) for words in COMMAND.findall(OWN_DATA.read_text())]


def test_the_readme_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 3
    exec("\n".join(blocks), {})


def test_rows_are_shown_as_they_are_read():
    blocks = re.findall(r"```json\n(.*?)```", OWN_DATA.read_text(), re.DOTALL)
    shown = [understood("page", json.loads(line)) for block in blocks for line in block.splitlines()]
    assert {row.layout for row in shown} == set(LAYOUTS)
    assert any(row.concepts for row in shown) and any("Notes:" in row.messages[0]["content"] for row in shown[3:])


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_do_what_the_page_says(words, tmp_path, monkeypatch, capsys):
    """With rows there; of what trains a model that is not here, the dry run."""
    monkeypatch.chdir(tmp_path)
    for folder in ("notes", "talks"):
        given = [{"prompt": f"{folder} {n}?", "completion": f"It is {n}.", "document": f"{n}"} for n in range(300)]
        Path(folder).mkdir()
        Path(folder, "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    trains = words[0] == "train" and "--dry-run" not in words
    expected = ["- a run of gemma4_e2b"] if "gemma4_e4b" in words else []
    if words[0] == "train" and not {"--data", "tiny"} & set(words):
        expected.insert(0, "- rows.data is missing")
    assert cli.main([*words, *(["--dry-run"] if trains else [])]) == bool(expected)
    said = capsys.readouterr().out
    if words[0] == "train":
        assert "What they take, estimated for" in said
        lacking = said.partition("It would not start:")[2].strip().splitlines()
        assert len(lacking) == len(expected) and all(map(str.startswith, lacking, expected))


def test_all_commands_of_the_page_are_found():
    assert len(COMMANDS) >= 15 and ["train", "gemma4_e2b", "--data", "notes", "--out", "runs/two"] in COMMANDS


def test_the_page_says_what_the_recipe_does(tmp_path, monkeypatch, capsys):
    """Its tables of roles, of gates and of what E2B takes."""
    page = OWN_DATA.read_text()
    assert re.findall(r"^\| (\w+) \| (\d+) \|", page, re.MULTILINE) == [(r, str(n)) for r, n in rows.SHARES.items()]
    gates = {f"{stage}: {m} {goal}" for stage, of in recipes.gemma4_e2b().gates.items() for m, goal in of.items()}
    assert set(re.findall(r"^\| (\w+: \w+ >?<?=? ?\d[\d.]*) \|", page, re.MULTILINE)) == gates
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "gemma4_e2b", "--dry-run"]) == 1
    said = re.findall(r"^(\w+) +([\d.]+) GB \| +([\d.]+) GB +([\d.]+) h \|", capsys.readouterr().out, re.MULTILINE)
    for stage, disk, memory, hours in said:
        assert re.search(rf"\| {stage} \|.*\| {memory} GB \| {float(disk):g} GB \| {float(hours):.0f} h \|", page)
    assert [stage for stage, *_ in said] == ["domain", "harvest"]
