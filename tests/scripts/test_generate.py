"""`agp generate`: text alone on stdout, what it cost on stderr, and every way it can end."""

import io
import json
import shutil
import time

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from agp.adapter_files import save
from agp.adapters import attach, detach
from agp.artifacts import ROOT
from agp.targets import design
from scripts import cli
from scripts import generate as door
from tests.test_adapters import stir
from tests.toys import config_dict, toy

TOKENIZER = ROOT / "agp" / "assets" / "tiny-gemma4"
WORDS = {"vocab_size": 2048, "vocab_size_per_layer_input": 2048, "max_position_embeddings": 300}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("toy")
    mx.random.seed(0)
    model = toy("gemma4", "shares some", **WORDS)
    mx.save_safetensors(str(made / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (made / "config.json").write_text(
        json.dumps(config_dict("gemma4", "shares some") | WORDS | {"model_type": "gemma4_text"})
    )
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / file, made)
    return made


@pytest.fixture
def say(folder, capsys):
    def say(*words: str) -> tuple[int, str, str]:
        code = cli.main(["generate", "--model", str(folder), *words])
        return code, *capsys.readouterr()

    return say


def test_stdout_is_the_text_and_stderr_says_what_it_cost(say):
    code, out, err = say("--prompt", "def f(x):", "--max-tokens", "7")
    assert code == 0 and out.endswith("\n") and out.strip()
    assert "text: 7 tokens, " in err and "peak memory" in err and "prompt: " in err


def test_a_seed_makes_the_text_and_stdin_can_hold_the_prompt(say, monkeypatch):
    drawn = ["--max-tokens", "12", "--temperature", "1.5", "--top-p", "0.9", "--seed"]
    _, first, _ = say("--prompt", "def f(x):", *drawn, "3")
    monkeypatch.setattr("sys.stdin", io.StringIO("def f(x):"))
    assert say("--prompt", "-", *drawn, "3")[1] == first
    assert say("--prompt", "def f(x):", *drawn, "4")[1] != first


def test_an_adapter_changes_the_text(say, tmp_path):
    model = toy("gemma4", "shares some", **WORDS)
    attach(model, design(model, "mlp", rank=2))
    stir(model)
    adapter, arrays = detach(model)
    save(tmp_path / "adapter", "gemma4_text", adapter, {name: 20 * a for name, a in arrays.items()})
    words = ["--prompt", "def f(x):", "--max-tokens", "12", "--temperature", "1.5", "--seed", "3"]
    code, text, _ = say(*words, "--adapter", str(tmp_path / "adapter"))
    assert code == 0 and text != say(*words)[1]
    assert "adapter is an empty name" in say(*words, "--adapter", "")[2]
    assert "holds neither adapters.safetensors" in say(*words, "--adapter", str(tmp_path))[2]


def test_text_ends_before_a_stop_string(say):
    _, whole, _ = say("--prompt", "def f(x):", "--max-tokens", "12")
    stop = whole.strip()[2:5]
    _, cut, _ = say("--prompt", "def f(x):", "--max-tokens", "12", "--stop", stop)
    assert cut == whole[: whole.find(stop)] + "\n"


def test_a_stop_string_may_be_a_mark_that_never_shows(say, monkeypatch):
    seen = {}
    monkeypatch.setattr(door, "generate", lambda *_, stop, **rest: seen.update(stop=stop) or iter(()))
    say("--prompt", "a", "--stop", "<bos>", "--stop", "xyz")
    assert 2 in seen["stop"]


def test_ctrl_c_keeps_what_was_written(say, monkeypatch):
    def interrupted(*args, **how):
        steps = generate(*args, **how)
        yield from (next(steps) for _ in range(3))
        raise KeyboardInterrupt

    generate = door.generate
    _, whole, _ = say("--prompt", "def f(x):", "--max-tokens", "9")
    monkeypatch.setattr(door, "generate", interrupted)
    code, out, err = say("--prompt", "def f(x):", "--max-tokens", "9")
    assert code == 130
    assert out.strip("\n") and whole.startswith(out.rstrip("\n"))
    assert "text: 3 tokens" in err and err.endswith("agp generate: stopped\n")


def test_a_long_prefill_says_how_long_it_takes(capsys):
    clock = door.Clock(prompt=1000, context=2000)
    clock.prefill(100, 1000)
    assert capsys.readouterr().err == ""
    clock.start = time.perf_counter() - 10
    clock.prefill(500, 1000)
    clock.prefill(1000, 1000)
    assert capsys.readouterr().err == "prompt: 500 of 1000 tokens, 10 s left\n"


@pytest.mark.parametrize(
    "words, what",
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "a", "--temperature", "-1"], "temperature is -1.0"),
        (["--prompt", "a", "--top-p", "2"], "top_p is 2.0"),
        (["--prompt", "a", "--max-tokens", "0"], "--max-tokens is 0; 1 or more is needed"),
        (["--prompt", "a", "--stop", ""], "a stop string is empty"),
        (["--prompt", "word " * 400], "do not fit the context of 300"),
    ],
)
def test_bad_input_is_one_line(say, words, what):
    code, out, err = say(*words)
    assert (code, out) == (2, "")
    assert what in err.splitlines()[-1]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--prompt", "\udcff"], "not UTF-8"),
        (["--prompt", "x", "--seed", "-1", "--temperature", "1"], "seed is -1"),
        (["--prompt", "x", "--seed", str(2**70), "--temperature", "1"], "seed is"),
    ],
)
def test_what_cannot_be_read_is_one_clean_message(say, words, said):
    code, out, err = say(*words)
    assert code == 2 and said in err and "Traceback" not in err


def test_a_full_context_is_said(say):
    code, out, err = say("--prompt", "x = 1", "--max-tokens", "400")
    assert code == 0 and "the context is full" in err
