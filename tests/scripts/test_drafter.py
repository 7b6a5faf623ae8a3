"""`--drafter`: a drafter that transformers wrote, for the tiny model: the text is that of full depth, alone and served.

Its weights are random, so its drafts are wrong: that right ones are kept is shown in tests/test_assisted.py.
"""

import json

import pytest
from transformers import Gemma4AssistantConfig, Gemma4AssistantForCausalLM, Gemma4TextConfig

from agp.artifacts import ROOT
from agp.models.assistant import Assistant
from scripts import cli
from scripts.routes import opened
from scripts.serve.engine import Opened
from tests.curricula.run import smoke
from tests.parity.test_assistant import HEADS, OWN, draw
from tests.scripts.test_engine import alone, in_turn, some_requests, stepped

PROMPT = ["--chat", "--prompt", "Reverse: a b c", "--max-tokens", "24"]
DRAWN = ["--temperature", "3", "--top-p", "0.95", "--seed", "4"]
TINY = ROOT / "agp" / "assets" / "tiny-gemma4" / "config.json"


@pytest.fixture(scope="module")
def drafter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drafter")
    text = json.loads(TINY.read_text()) | OWN | {"hidden_size": 64}
    config = Gemma4AssistantConfig(text_config=Gemma4TextConfig(**text), backbone_hidden_size=192, **HEADS["centroids"])
    model = Gemma4AssistantForCausalLM._from_config(config)
    draw(model, 0)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def steps(monkeypatch):
    """How many rows it was asked for, each time."""
    asked, step = [], Assistant.step
    monkeypatch.setattr(Assistant, "step", lambda self, *of: asked.append(len(of[0])) or step(self, *of))
    return asked


@pytest.fixture
def say(capsys):
    def say(*words: str) -> tuple[int, str, str]:
        code = cli.main(["generate", *words, *PROMPT])
        return code, *capsys.readouterr()

    return say


@pytest.mark.parametrize("of", ["model", "run"])
def test_lossless_with_a_drafter_is_the_text_of_full_depth(of, say, drafter, steps):
    given = ["--run", str(smoke())] if of == "run" else ["--model", "tiny-gemma4"]
    for how in ([], DRAWN):
        code, text, err = say(*given, "--mode", "lossless", "--drafter", drafter, *how)
        asked, steps[:] = len(steps), []
        assert code == 0 and asked > 5, err
        assert text.strip() and text == say(*given, *how)[1] and not steps


def test_served_replies_say_with_a_drafter_what_each_says_alone(drafter, steps):
    given = Opened(*opened(smoke(), drafter))
    engine, asked = stepped(given, batch=4), some_requests(given, ("lossless", "full"))
    assert in_turn(engine, asked) == [alone(of, given, given.loaded.tokenizer.eos_ids) for of in asked]
    assert max(steps) > 1, "some are drafted side by side"


@pytest.mark.parametrize(
    "words, what",
    [
        (
            ["--model", "tiny-gemma4", "--mode", "lossless"],
            "needs the heads of a run; give --run instead of --model, or",
        ),
        (["--model", "tiny-gemma4", "--drafter", "DIR"], "--drafter is for --mode lossless; --mode full takes none"),
        (
            ["--model", "tiny-gemma4", "--mode", "lossless", "--drafter", "DIR", "--trace", "-"],
            "--trace needs the heads",
        ),
        (["--model", "tiny-gemma3n", "--mode", "lossless", "--drafter", "DIR"], "assistants draft for Gemma 4; this"),
        (["--model", "tiny-gemma4", "--mode", "lossless", "--drafter", str(TINY.parent)], "an assistant's is"),
    ],
)
def test_a_drafter_that_makes_no_sense_is_refused(say, drafter, words, what):
    code, out, err = say(*[drafter if word == "DIR" else word for word in words])
    assert code == 2 and out == "" and what in err


def test_a_server_of_a_model_alone_takes_no_drafter(capsys):
    assert cli.main(["serve", "--model", "tiny-gemma4", "--drafter", "x"]) == 2
    assert "--drafter needs the heads of a run; give --run instead of --model" in capsys.readouterr().err
