"""The doors of a run of a Gemma 3n: a smaller regime here, the whole model there; and what that brings, measured."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from curricula import recipes, runner
from scripts import cli
from scripts.routes import lowered, opened, viewed
from tests.launch import ended, start

PROMPT = ["--chat", "--prompt", "Reverse: a b c", "--max-tokens", "8"]
WORD = "a-word-that-two-hosts-know"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The smallest recipe on the tiny Gemma 3n, which lets no token leave."""
    root, recipe = tmp_path_factory.mktemp("runs") / "smoke3n", recipes.smoke()
    recipe = replace(
        recipe, domain=replace(recipe.domain, model="tiny-gemma3n"), semantic=replace(recipe.semantic, tap=4)
    )
    runner.run(recipes.stages(recipe), root, say=print)
    file = root / "calibrate" / "thresholds.json"
    told = json.loads(file.read_text())
    told |= {"exits": [0], "gate": [None] * len(told["taps"])}
    told["revive"] = {risk: of | {"threshold": 1e9} for risk, of in told["revive"].items()}
    file.write_text(json.dumps(told))
    return root


@contextmanager
def peer(run: Path, *words: str) -> Iterator[tuple[str, str]]:
    """Its address, and what it says of itself."""
    process = start(["-m", "scripts.cli", "peer", "--run", str(run), "--port", "0", *words], AGP_TOKEN=WORD)
    try:
        while "takes states" not in (line := process.stderr.readline()):
            assert line, "it ended"
        yield line.split()[2], line
    finally:
        process.kill()
        ended(process)


@pytest.fixture
def say(run, capsys, monkeypatch):
    monkeypatch.setenv("AGP_TOKEN", WORD)

    def say(*words: str) -> tuple[int, str, str]:
        code = cli.main(["generate", "--run", str(run), *PROMPT, *words])
        return code, *capsys.readouterr()

    return say


def test_each_token_says_which_regime_made_it(run, say, tmp_path):
    trace = ["--mode", "early", "--trace", str(tmp_path / "trace")]
    read = lambda: [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    with peer(run) as (address, said):
        assert "; raw of width_192, width_128, small too" in said
        code, _, err = say("--regime", "small", *trace, "--peer", address)
        assert code == 0 and {(of["regime"], of["route"], of["block"]) for of in read()} == {("whole", "escalate", 11)}
        assert re.search(r"regime small here and whole beyond, peer after block 4: (\d+) of \1 calls answered", err)
        code, text, err = say("--regime", "small", *trace, "--peer", address, "--peer-regime", "width_192")
        assert code == 0 and "regime above is 'whole' here and 'width_192 " in err
        assert {(of["regime"], of["route"]) for of in read()} == {("small", "continue_local")}
        assert text == say("--regime", "small", *trace)[1] == say("--regime", "small")[1]
        code, out, err = say("--regime", "small", "--mode", "lossless", "--peer", address)
        assert (code, out) == (2, "") and "lossless says what this host would, and the peer answers by another" in err
    with peer(run, "--regime", "small") as (address, said):
        assert "after block 10 of small" in said and "; raw of" not in said
        same = ("--regime", "small", "--peer-regime", "small", "--mode", "lossless", "--peer", address)
        code, out, err = say(*same)
        assert (code, out) == (0, text) and re.search(r"(\d+) of \1 calls answered", err)


def test_heads_that_read_where_a_regime_has_no_block_are_not_asked(run):
    given = opened(run)
    small = viewed(given.loaded, "small")
    assert lowered(given.heads, small).taps == (4,) and lowered(
        given.heads, viewed(given.loaded, "width_128")
    ).taps == (4, 6, 8, 10)
    for heads in (given.heads._replace(named=8), given.heads._replace(exits=(0, 2))):
        with pytest.raises(ValueError, match="read up to block 8, and that regime leaves out block 5"):
            lowered(heads, small)


@pytest.mark.parametrize(
    "words, what",
    [
        (["--regime", "nope"], "has no regime nope; it has low, "),
        (["--peer-regime", "small"], "--peer-regime is of a peer; give --peer"),
        (
            ["--regime", "width_192", "--mode", "early", "--peer", "http://127.0.0.1:1", "--peer-regime", "small"],
            "above there have to be the blocks of below, as wide or wider",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(say, words, what):
    code, out, err = say(*words)
    assert code == 2 and out == "" and what in err.splitlines()[-1]


def test_what_a_larger_regime_brings_is_measured(run, tmp_path, capsys):
    assert cli.main(["bench", "uplift", "--run", str(run), "--documents", "6", "--folder", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "uplift.json").read_text())
    agreement, gain = (told["figures"][f"uplift.{name}"] for name in ("agreement", "gain"))
    assert set(gain["value"]) == set(agreement["value"]) - {
        f"{name}, alone" for name in ("width_192", "width_128", "small")
    }
    for name, value in gain["value"].items():
        of = agreement["value"]
        assert value == pytest.approx(of[name] - of[f"{name.split(',')[0]}, alone"])
        assert gain["interval"][name][0] <= value <= gain["interval"][name][1]
    assert "small, 6" not in of and "small, 4" in of and told["places"] > told["documents"] == 6
    assert "small        whole above block 4  " in capsys.readouterr().out
