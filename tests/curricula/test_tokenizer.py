"""One tokenizer, three readers: sentencepiece, transformers and mlx-lm give the same ids."""

from pathlib import Path

import pytest
import sentencepiece
from mlx_lm.tokenizer_utils import load
from transformers import AutoTokenizer

from curricula import families, source

ASSETS = Path(__file__).parents[2] / "agp" / "assets"
SHIPPED = ("tiny-gemma4", "tiny-gemma3n")
HARD = [
    "",
    " ",
    "\n",
    "a  b   c    d     e",
    "\tif x:\r\n\t\treturn\r\n\r\n",
    " " * 37 + "x" + "\n" * 9 + " " * 5 + "\n \n  \n",
    "déjà vu — naïve “quotes” 漢字 Ελληνικά 🙂🏽 \u200b\ufeff\u00a0end",
    "e\u0301 versus \u00e9, ﬁ ligature, ① ² ½",
    "1234567890 3.14159e-10 0xFF_FF",
    "<|turn>user\nhello<turn|>\n<|turn>model\n",
    "\u2581 is the mark of a space",
]


@pytest.fixture(params=SHIPPED)
def folder(request):
    return ASSETS / request.param


@pytest.fixture
def pieces(folder):
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.fixture
def fast(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_ids_are_the_same_over_all_held_out_text(pieces, fast):
    for kind in ("heldout", "shift"):
        for name, text in source.committed(kind).items():
            ids = pieces.encode(text)
            assert ids == fast.encode(text, add_special_tokens=False), name
            assert pieces.decode(ids) == text == fast.decode(ids), name


@pytest.mark.parametrize("family", families.FAMILIES)
def test_ids_are_the_same_for_items_and_answers_never_melt_into_prompts(family, pieces, fast):
    for split in families.SPLITS:
        for index in range(5):
            made = families.item(family, split, index)
            for prompt in (families.bare_prompt(made.prompt), families.chat_prompt(made.prompt)):
                ids = pieces.encode(prompt + made.answer)
                assert ids == fast.encode(prompt + made.answer, add_special_tokens=False)
                assert ids == pieces.encode(prompt) + pieces.encode(made.answer)


@pytest.mark.parametrize("text", HARD)
def test_ids_are_the_same_for_hard_text_and_decoding_gives_it_back(text, pieces, fast):
    ids = pieces.encode(text)
    assert ids == fast.encode(text, add_special_tokens=False)
    assert fast.decode(ids) == pieces.decode(ids)
    if "\u2581" not in text:  # sentencepiece cannot tell its own mark from a space
        assert fast.decode(ids) == text


def test_special_ids_are_gemmas(pieces, fast):
    assert [pieces.piece_to_id(p) for p in ("<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>")] == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]
    assert (fast.pad_token_id, fast.eos_token_id, fast.bos_token_id, fast.unk_token_id) == (0, 1, 2, 3)
    assert fast.encode("a")[0] == 2 and pieces.vocab_size() == len(fast) == 2048


def test_the_chat_template_writes_the_prompt_the_models_were_trained_on(fast):
    text = fast.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "<bos>" + families.chat_prompt("hi")


def test_mlx_lm_reads_the_same_tokenizer(folder, fast):
    wrapped = load(folder)
    text = next(iter(source.committed("heldout").values()))[:3000]
    assert wrapped.encode(text, add_special_tokens=False) == fast.encode(text, add_special_tokens=False)
