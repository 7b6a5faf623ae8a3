"""`agp generate --run`: the modes of a whole run, what each token carries, and what is refused.

The smoke run certifies nothing, so thresholds are put where tokens leave.
"""

import json
import re
import shutil

import pytest

from scripts import cli
from tests.curricula.run import smoke
from tests.launch import ended, start

PROMPT = ["--chat", "--prompt", "Reverse: a b c", "--max-tokens", "12"]


@pytest.fixture
def say(capsys):
    def say(*words: str) -> tuple[int, str, str]:
        code = cli.main(["generate", *words])
        return code, *capsys.readouterr()

    return say


def lax(folder):
    """The run with a threshold that lets all go at the first tap."""
    for part in smoke().iterdir():
        (folder / part.name).symlink_to(part)
    (folder / "calibrate").unlink()
    shutil.copytree(smoke() / "calibrate", folder / "calibrate")
    file = folder / "calibrate" / "thresholds.json"
    told = json.loads(file.read_text())
    told |= {"exits": [0], "gate": [None] * len(told["taps"])}
    told["revive"] = {risk: of | {"threshold": -1e9} for risk, of in told["revive"].items()}
    file.write_text(json.dumps(told))
    return str(folder)


def test_lossless_is_the_text_of_full_depth(say):
    run = ["--run", str(smoke())]
    code, full, _ = say(*run, *PROMPT)
    assert code == 0 and full.strip()
    assert say(*run, *PROMPT, "--mode", "lossless")[1] == full
    drawn = ["--temperature", "3", "--top-p", "0.95", "--seed", "4"]
    assert say(*run, *PROMPT, *drawn, "--mode", "lossless")[1] == say(*run, *PROMPT, *drawn)[1] != full


def test_every_token_of_early_says_where_it_left(say, tmp_path):
    (tmp_path / "run").mkdir()
    run, trace = ["--run", lax(tmp_path / "run")], tmp_path / "trace.jsonl"
    code, text, err = say(*run, *PROMPT, "--mode", "early", "--trace", str(trace))
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    assert code == 0 and 0 < len(lines) <= 12
    assert text.strip() == "".join(line["text"] for line in lines if not line["text"].startswith("<")).strip()
    early = [line for line in lines if line["route"] == "revive_local"]
    assert {line["block"] for line in early} == {4} and f"{len(early) / len(lines):.0%} after block 4" in err
    assert all(0 <= line["vitality"] <= 1 and line["concepts"] is None and line["ms"] > 0 for line in early)
    for line in lines:  # an audited token goes on
        assert line in early or (line["block"], line["vitality"]) == (11, None) and line["concepts"] is not None


@pytest.mark.slow
def test_a_peer_runs_what_is_above_the_tap_and_its_loss_changes_nothing(say, tmp_path):
    token, run = tmp_path / "token", ["--run", str(smoke())]
    token.write_text("a word that nobody knows".replace(" ", "-"))
    full, seen = say(*run, *PROMPT)[1], ["--token-file", str(token), "--trace", str(tmp_path / "trace")]
    peer = start(["-m", "scripts.cli", "peer", *run, "--port", "0", "--token-file", str(token)])
    try:
        while "takes states" not in (line := peer.stderr.readline()):
            assert line, "it ended"
        there = ["--mode", "lossless", "--peer", line.split()[2]]
        code, text, err = say(*run, *PROMPT, *there, *seen)
        routes = [json.loads(line)["route"] for line in (tmp_path / "trace").read_text().splitlines()]
        assert (code, text) == (0, full) and "escalate" in routes and "continue_local" not in routes
        answered, calls = re.search(r"peer after block 4: (\d+) of (\d+) calls answered", err).groups()
        assert int(answered) == int(calls) > 0
        assert "at last: " in say(*run, *PROMPT, *there)[2], "who has no token is not answered"
    finally:
        peer.kill()
        ended(peer, within=20)
    code, text, err = say(*run, *PROMPT, *there, *seen)
    assert (code, text) == (0, full) and "after block 4: 0 of" in err and "0 bytes sent, at last: no connection" in err


@pytest.mark.parametrize(
    "words, what",
    [
        (["--model", "tiny-gemma4", "--mode", "early"], "--mode early needs the heads of a run; give --run"),
        (["--run", "SMOKE", "--mode", "early"], "at a risk of 0.01 this run lets no token leave early"),
        (["--run", "SMOKE", "--mode", "early", "--risk", "0.03"], "promises nothing for a risk of 0.03; it was"),
        (["--run", "SMOKE", "--mode", "lossless", "--risk", "0.01"], "--risk is for --mode early"),
        (["--run", "SMOKE", "--dtype", "float16"], "a run has its own; leave out --dtype"),
        (["--run", "SMOKE", "--peer", "http://127.0.0.1:1"], "--peer is for --mode early or lossless"),
        (["--run", "SMOKE", "--trace", "-"], "--trace is for --mode early or lossless"),
        (["--run", "tests"], "tests is no finished run, nor one that was begun"),
        (["--run", "nowhere"], "nowhere is not there; a folder that `agp train` made is needed"),
        (["--run", "README.md"], "README.md is a file; a folder that `agp train` made is needed"),
        (["--run", "SMOKE", "--mode", "early", "--risk", "7"], "promises nothing for a risk of 7; it was"),
        (["--run", "SMOKE", "--mode", "early", "--regime", "small"], "is no Gemma 3n, which alone has regimes"),
        (["--run", "SMOKE", "--mode", "lossless", "--token-file", "x"], "--token-file is for --peer, which is not"),
        (["--run", "SMOKE", "--mode", "early", "--trace", "no/x"], "--trace no/x cannot be written: No such file"),
    ],
)
def test_what_makes_no_sense_is_refused(say, words, what):
    words = [str(smoke()) if word == "SMOKE" else word for word in words]
    code, out, err = say(*words, *PROMPT)
    assert code == 2 and out == "" and what in err.splitlines()[-1]
