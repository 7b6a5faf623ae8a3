"""The thin tokenizer gives the ids and texts of transformers, and runs nothing but a sandboxed template.

Seen to fail when broken: <bos> twice, a plain environment for the sandbox.
"""

import json

import pytest
from transformers import AutoTokenizer

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
