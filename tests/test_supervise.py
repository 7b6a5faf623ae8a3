"""What is learned of a row: every assistant turn with its end, a completion, or a whole text; nothing else."""

from pathlib import Path

import numpy as np
import pytest

from agp.data import Row, understood
from agp.supervise import prepare, supervised
from agp.text import open_tokenizer

TOKENIZER = open_tokenizer(Path(__file__).parents[1] / "agp/assets/tiny-gemma4")


def row(**given) -> Row:
    return understood("train.jsonl:1", given)


def turns(*said):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 9, said, strict=False)]


def learned(example, tokenizer=TOKENIZER):
    """The text of what is learned, run by run."""
    runs, before = [], False
    for token, now in zip(example.ids.tolist(), example.learned.tolist(), strict=True):
        if now:
            runs = [*runs, [token]] if not before else [*runs[:-1], [*runs[-1], token]]
        before = now
    return [tokenizer.decode(run, special=True) for run in runs]


def test_every_assistant_turn_is_learned_with_its_end_and_nothing_else():
    example = supervised(row(messages=turns("one?", "first!", "two?", "second é 😀!", "left over")), TOKENIZER)
    assert learned(example) == ["first!<turn|>\n", "second é 😀!<turn|>\n"]
    whole = "<bos><|turn>user\none?<turn|>\n<|turn>model\nfirst!<turn|>\n<|turn>user\ntwo?<turn|>\n<|turn>model\n"
    assert TOKENIZER.decode(example.ids.tolist(), special=True).startswith(whole)


def test_what_is_read_before_an_answer_is_what_generation_reads():
    example = supervised(row(messages=turns("one?", "first!")), TOKENIZER)
    asked = TOKENIZER.chat(turns("one?"))
    assert example.ids[: len(asked)].tolist() == asked and not example.learned[: len(asked)].any()
    assert example.learned[len(asked) :].all()


def test_a_prompt_and_its_completion_are_a_conversation_where_there_is_a_template():
    a = supervised(row(prompt="one?", completion="first!"), TOKENIZER)
    b = supervised(row(messages=turns("one?", "first!")), TOKENIZER)
    assert np.array_equal(a.ids, b.ids) and np.array_equal(a.learned, b.learned)


@pytest.fixture
def plain(monkeypatch):
    tokenizer = open_tokenizer(Path(__file__).parents[1] / "agp/assets/tiny-gemma4")
    monkeypatch.setattr(tokenizer, "template", None)
    return tokenizer


def test_without_a_template_a_completion_continues_the_prompt_and_ends(plain):
    example = supervised(row(prompt="one ", completion="two"), plain)
    assert plain.decode(example.ids.tolist(), special=True) == "<bos>one two<eos>"
    assert learned(example, plain) == ["two<eos>"]
    with pytest.raises(ValueError, match="train.jsonl:1: this tokenizer has no chat template"):
        supervised(row(messages=turns("a", "b")), plain)


def test_all_of_a_text_is_learned_but_its_beginning():
    example = supervised(row(text="def f():\n    pass"), TOKENIZER)
    assert learned(example) == ["def f():\n    pass<eos>"] and example.ids[0] == TOKENIZER.bos_id


def test_a_template_that_writes_old_turns_otherwise_is_refused(monkeypatch):
    tokenizer = open_tokenizer(Path(__file__).parents[1] / "agp/assets/tiny-gemma4")
    shortened = "{% for m in messages %}{{ m.role }}:{{ m.content if loop.last else m.content[:2] }}\n{% endfor %}"
    monkeypatch.setattr(tokenizer, "template", shortened)
    with pytest.raises(ValueError, match="writes turn 2 otherwise when others follow"):
        supervised(row(messages=turns("one?", "first!", "two?", "second!")), tokenizer)


def test_rows_that_are_too_long_are_cut_or_left_out_and_it_is_said():
    rows = [row(text="a b c d e f g h"), row(text="a"), row(prompt="x y z " * 20, completion="q")]
    cut, notes = prepare(rows, TOKENIZER, 6)
    assert [len(e.ids) for e in cut] == [6, 3]
    assert notes[0].startswith("2 rows have more than 6 tokens and are cut off at the end: train.jsonl:1")
    assert notes[1].startswith("1 rows have nothing left to learn and are left out")
    kept, notes = prepare(rows, TOKENIZER, 6, cut=False)
    assert len(kept) == 1 and "are left out" in notes[0]
