"""The thin tokenizer gives the ids and texts of transformers, and runs nothing but a sandboxed template.

Seen to fail when broken: <bos> twice, a plain environment for the sandbox.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

import agp
from agp.text import open_tokenizer
from tests.models.checkpoints import write_tokenizer

TURNS = "{{ bos_token }}{% for m in messages %}<turn>{{ m['content'] }}{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}<turn>{% endif %}"
HELLO = [{"role": "user", "content": "hello"}]
TEXTS = ["hello, world.", " two  spaces ", "h\u00e9 \u20ac", "<turn>a<eos>"]


def tokenizer(folder, template: str | None = TEMPLATE, **settings):
    write_tokenizer(folder, template, **settings)
    found = open_tokenizer(folder, {})
    assert found is not None
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_texts_are_those_of_transformers(text, tmp_path):
    ours = tokenizer(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = ours.encode(text, bos=False)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, special=True) == text
    assert "".join(ours.stream(iter(ids), special=True)) == text
    assert ours.chat(HELLO) == theirs.apply_chat_template(HELLO, add_generation_prompt=True)["input_ids"]


def test_a_text_begins_with_one_bos(tmp_path):
    ours = tokenizer(tmp_path)
    assert ours.encode("a") == ours.encode("<bos>a") == [ours.bos_id, *ours.encode("a", bos=False)]
    assert ours.encode("", bos=True) == [2]
    assert ours.chat(HELLO, answer=False)[:2] == [2, ours.encode("<turn>", bos=False)[0]]


def test_half_a_character_is_not_streamed(tmp_path):
    ours = tokenizer(tmp_path)
    ids = ours.encode("\u20ac", bos=False)
    assert list(ours.stream(iter(ids))) == ["", "", "\u20ac"]


def test_marks_and_ends_are_read_where_each_file_states_them(tmp_path):
    ours = tokenizer(tmp_path)
    assert (ours.bos_id, ours.eos_ids, ours.pad_id, len(ours)) == (2, (1,), 0, 290)
    assert open_tokenizer(tmp_path, {"eos_token_id": 4}).eos_ids == (1, 4)
    assert open_tokenizer(tmp_path, {"text_config": {"eos_token_id": [4, 5]}}).eos_ids == (1, 4, 5)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 106]}))
    assert open_tokenizer(tmp_path, {"eos_token_id": 4}).eos_ids == (1, 106)


def test_a_template_in_the_settings_is_found(tmp_path):
    ours = tokenizer(tmp_path, None, chat_template="{{ messages[0]['content'] }}")
    assert ours.render(HELLO) == "hello"


def test_no_template_is_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match="has no chat template"):
        tokenizer(tmp_path, None).render(HELLO)


def test_a_template_may_refuse_messages(tmp_path):
    ours = tokenizer(tmp_path, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="refuses these messages: roles must alternate"):
        ours.render(HELLO)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['Path'] }}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(attack, tmp_path):
    with pytest.raises(ValueError, match="refuses these messages"):
        tokenizer(tmp_path, attack).render(HELLO)


def test_no_tokenizer_is_none_and_a_lone_sentencepiece_model_an_error(tmp_path):
    assert open_tokenizer(tmp_path, {}) is None
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ValueError, match="tokenizer.model is here without the tokenizer.json"):
        open_tokenizer(tmp_path, {})


def test_settings_of_the_wrong_kind_are_refused(tmp_path):
    tokenizer(tmp_path)
    with pytest.raises(ValueError, match="eos_token_id is .*'x'"):
        open_tokenizer(tmp_path, {"eos_token_id": ["x"]})
    assert open_tokenizer(tmp_path, {"text_config": [1]}) is not None
    with pytest.raises(ValueError, match="tokenizer_config.json: 5 is no token"):
        tokenizer(tmp_path, bos_token=5)


def test_no_text_is_cut_or_padded_as_the_file_says(tmp_path):
    write_tokenizer(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    whole["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 5}
    whole["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    whole["padding"] |= {"pad_type_id": 0, "pad_token": "<pad>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert open_tokenizer(tmp_path).encode("abcd", bos=False) == [262, 263, 264, 265]


FAILING = {
    "a division by zero": "{{ 1 // 0 }}",
    "a long power": "{{ 9 ** 9 ** 9 }}",
    "a long power, folded": "{% set x = 9999 ** 99999 %}",
    "a long text": "{{ 'x' * 999999999 }}",
    "a long list": "{{ [0] * 999999999 }}",
    "a long number": "{% set n = namespace(n=9**99) %}{% for i in range(30) %}{% set n.n = n.n * n.n %}{% endfor %}",
    "an endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a float beyond floats": "{{ 10.0 ** 999 }}",
    "what is not there": "{{ messages[0].content.nothing.more }}",
    "a wrong type": "{{ 'a' + 1 }}",
    "a nest too deep": "{% for i in [] %}" * 30 + "{% endfor %}" * 30,
    "a nest far too deep": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "no template": "{% if %}",
    "a codec": "{{ messages[0].content.encode('ascii', 'x').decode('zzz') }}",
}


@pytest.mark.parametrize("template", FAILING.values(), ids=FAILING)
def test_a_template_that_fails_harms_only_who_renders_it(template, tmp_path):
    ours = tokenizer(tmp_path, template)
    for _ in range(2):
        with pytest.raises(ValueError, match="the chat template (does not parse|refuses these messages)"):
            ours.render(HELLO)


def test_what_a_template_says_is_escaped_and_cut(tmp_path):
    with pytest.raises(ValueError) as error:
        tokenizer(tmp_path, r"{{ raise_exception('\x1b[2J' * 9999) }}").render(HELLO)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


LIKE_THEIRS = {
    "json": "{{ messages | tojson }}{{ {'z': '<\u20ac>', 'a': 1} | tojson(indent=2) }}",
    "a generation": "{% generation %}{% set x = 1 %}{{ messages[0].content }}{% endgeneration %}{{ x }}",
    "the year": "{{ strftime_now('%Y') }}",
    "no tools": "{{ tools is none }}{{ documents is none }}",
    "sums": "{{ 3 * 4 }}{{ '-' * 3 }}{{ 2 ** 10 }}{{ 1.5 * 2 }}",
}


@pytest.mark.parametrize("template", LIKE_THEIRS.values(), ids=LIKE_THEIRS)
def test_templates_render_as_transformers_renders_them(template, tmp_path):
    ours = tokenizer(tmp_path, template)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.render(HELLO) == theirs.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=True)


def test_of_several_templates_the_default_is_taken(tmp_path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages[0]['content'] }}"}]
    assert tokenizer(tmp_path, None, chat_template=named).render(HELLO) == "hello"
    with pytest.raises(ValueError, match="has no chat template"):
        tokenizer(tmp_path, None, chat_template=[{"name": []}, 5]).render(HELLO)


def test_any_ids_stream_to_the_text_they_decode_to():
    """Bytes that never make a character too: tokenizers' own stream raises on them."""
    tiny = open_tokenizer(Path(agp.__file__).parent / "assets/tiny-gemma4", {})
    bytes_end = next(i for i in range(2048) if tiny.pieces.id_to_token(i) == "<0xFF>") + 1
    for seed in range(20):
        rng = np.random.default_rng(seed)
        words = rng.integers(bytes_end, len(tiny), 60).tolist()
        assert "".join(tiny.stream(iter(words))) == tiny.decode(words)
        anything = rng.integers(0, len(tiny), 200).tolist() + rng.integers(0, bytes_end, 20).tolist()
        assert "".join(tiny.stream(iter(anything)))
