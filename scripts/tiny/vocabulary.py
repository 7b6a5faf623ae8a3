"""One tokenizer for all tiny models: sentencepiece BPE with Gemma's ids, and the same merges as a tokenizer.json."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from agp.artifacts import write_json
from curricula import families, source

SIZE = 2048
SPACE = "\u2581"
TURNS = ("<|turn>", "<turn|>")
# Line breaks with the indentation that follows: sentencepiece trains line by line and cannot learn them by itself.
BREAKS = (*("\n" + " " * n for n in (4, 8, 12, 16, 20, 24)), "\n\n\n", "\n\n", "\n", "\r\n", "\t")
TEMPLATE = """{{ bos_token }}{% for message in messages %}{{ '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' + message['content'] + '<turn|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\\n' }}{% endif %}"""  # noqa: E501


def lines(characters: int = 12_000_000) -> Iterator[str]:
    """Training lines: a sample of the training modules, and items of every family."""
    texts = list(source.training().values())
    Random(0).shuffle(texts)
    taken = 0
    for text in texts:
        taken += len(text)
        yield from (line for line in text.split("\n") if line.strip())
        if taken > characters:
            break
    for family in families.FAMILIES:
        for index in range(1500):
            item = families.item(family, "pretrain", index)
            yield from (line for line in (families.bare_prompt(item.prompt) + item.answer).split("\n") if line.strip())


def train(folder: Path) -> None:
    """Write tokenizer.model and everything transformers and mlx-lm read beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines(),
        model_writer=made,
        model_type="bpe",
        vocab_size=SIZE,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        max_sentence_length=16_384,
        character_coverage=0.9995,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=[*TURNS, *(text.replace(" ", SPACE) for text in BREAKS)],
        num_threads=2,
        minloglevel=1,
    )
    part = folder / "tokenizer.model.part"
    part.write_bytes(made.getvalue())
    part.replace(folder / "tokenizer.model")
    write_companions(folder)


def merges_of(pieces: list[str]) -> list[tuple[str, str]]:
    """Every way to put a learned piece together from two pieces, earlier pieces first, as sentencepiece scores them."""
    rank = {piece: i for i, piece in enumerate(pieces)}
    found = []
    for i, piece in enumerate(pieces):
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))]
        found += sorted(
            ((i, rank[left], rank[right], left, right) for left, right in cuts if left in rank and right in rank)
        )
    return [(left, right) for *_, left, right in found]


def write_companions(folder: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    raw = {text.replace(" ", SPACE): text for text in BREAKS}  # added tokens are matched before spaces are replaced
    vocabulary = {raw.get(p, p): i for i, p in enumerate(map(pieces.id_to_piece, range(pieces.vocab_size())))}
    first = 4 + len(TURNS) + len(BREAKS) + 256  # specials, user symbols and bytes come before what was learned
    learned = [pieces.id_to_piece(i) for i in range(first, pieces.vocab_size())]
    ordered = [p for p in learned if len(p) > 1] + [p for p in learned if len(p) == 1]
    singles = set(ordered[-sum(len(p) == 1 for p in learned) :])
    merges = [(a, b) for a, b in merges_of(ordered) if len(a + b) > 1 and a + b not in singles]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True, ignore_merges=False)
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in ("<pad>", "<eos>", "<bos>", "<unk>", *TURNS)]
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in BREAKS])
    data = json.loads(tokenizer.to_str())
    data["post_processor"] = bos_first()
    write_json(folder / "tokenizer.json", data)
    write_settings(folder)


def bos_first() -> dict:
    special = {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}
    bos, a, b = (
        {"SpecialToken": {"id": "<bos>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    )
    return {"type": "TemplateProcessing", "single": [bos, a], "pair": [bos, a, bos, b], "special_tokens": special}


def write_settings(folder: Path) -> None:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
        "additional_special_tokens": list(TURNS),
    }
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
