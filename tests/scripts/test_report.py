"""`agp report` as it is typed, and as `agp train` ends with it."""

import shutil

import pytest

from scripts import cli
from tests.curricula.run import smoke

ONE = ("--processes", "1")  # this one, so that what it says is seen


@pytest.fixture
def made(tmp_path):
    shutil.copytree(smoke(), tmp_path / "runs/smoke")
    (tmp_path / "runs/smoke/recipe.json").write_text('{"recipe": "smoke", "stages": ["rows", "domain"]}')
    (tmp_path / "results").mkdir()
    return tmp_path / "runs"


def report(*words):
    return cli.main(["report", *map(str, words)])


def test_all_runs_of_a_folder_are_on_one_page_in_it(made, capsys):
    shutil.copytree(made / "smoke", made / "other")
    assert report(made, "--results", made.parent / "results") == 0
    assert capsys.readouterr().out == f"report: {made / 'report.html'}\n"
    page = (made / "report.html").read_text()
    assert page.index(">Run other</h2>") < page.index(">Run smoke</h2>") and "Figures in results/" not in page


def test_runs_that_are_named_are_on_the_page_that_is_named(made, capsys):
    shutil.copytree(made / "smoke", made / "other")
    out = made.parent / "pages/one.html"
    assert report(made / "smoke", "--out", out) == 0
    page = out.read_text()
    assert "Run smoke" in page and "Run other" not in page and "decode.decode_ratio" in page
    first = out.read_bytes()
    assert report(made / "smoke", "--out", out) == 0 and out.read_bytes() == first


WRONG = {
    "no such run": (["nowhere", "runs"], "there is no run in nowhere; `agp train` makes one"),
    "no results": (["--results", "nowhere"], "no folder nowhere"),
    "a folder as the page": (
        ["--out", "runs"],
        "--out runs is a folder; give the file to write, such as runs/report.html",
    ),
    "where nobody can write": (["--out", "/proc/pages/x.html"], "nothing can be made in /proc"),
    "a page below a file": (
        ["--out", "runs/smoke/recipe.json/x.html"],
        "recipe.json is a file, and a folder is needed",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_user_can_mend_is_one_line(name, made, monkeypatch, capsys):
    monkeypatch.chdir(made.parent)
    words, said = WRONG[name]
    assert report(*words) == 2
    error = capsys.readouterr().err
    assert said in error and error.strip().splitlines()[-1].startswith("agp report: ")
    assert not (made / "report.html").exists()


def test_what_is_damaged_is_said_where_the_page_is_named(made, capsys):
    (made / "smoke/rows/conversation/test.jsonl").write_text("")
    assert report(made / "smoke") == 0
    assert "smoke: rows is damaged: conversation/test.jsonl has 0 bytes and had" in capsys.readouterr().err


def test_training_ends_with_the_page_of_its_run(made, capsys):
    assert cli.main(["train", "smoke", "--out", str(made / "smoke"), "--until", "rows", *ONE]) == 0
    page = made / "smoke/report.html"
    assert f"report: {page}" in capsys.readouterr().out and "Run smoke" in page.read_text()


def test_a_closed_gate_is_on_the_page_too(made, tmp_path, capsys):
    (tmp_path / "gates.toml").write_text('gates.rows.heads = ">= 1e9"\n')
    shutil.rmtree(made / "smoke/rows")
    words = ["smoke", "--out", str(made / "smoke"), "--until", "rows", "--config", str(tmp_path / "gates.toml")]
    assert cli.main(["train", *words, *ONE]) == 2
    said = capsys.readouterr()
    assert f"report: {made / 'smoke/report.html'}" in said.out and "the gate of rows is closed" in said.err
    assert "and &gt;= 1e9 was wanted; the run stopped here." in (made / "smoke/report.html").read_text()


def test_a_page_that_cannot_be_written_spoils_no_run(made, capsys):
    (made / "smoke/report.html").mkdir()
    assert cli.main(["train", "smoke", "--out", str(made / "smoke"), "--until", "rows", *ONE]) == 0
    assert "no report: --out" in capsys.readouterr().err
