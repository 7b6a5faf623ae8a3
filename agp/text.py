"""Text to token ids and back, by the folder's tokenizer.json. Its chat template is never run before it is asked for."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Pieces

from agp.models.files import read, read_json, read_text, there
from agp.models.tensors import clean, shown
from agp.template import chosen, render

UNFINISHED = "\ufffd"  # how bytes read that are no character, or not yet
LARGEST = 64_000_000  # bytes of tokenizer.json; Gemma's has 33 million
MARKS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    def __init__(self, pieces: Pieces, marks: Mapping[str, str], eos_ids: Collection[int], template: str | None):
        self.pieces, self.marks, self.template = pieces, dict(marks), template
        self.bos_id, eos, self.pad_id = (self._id(mark) for mark in MARKS[:3])
        self.eos_ids: tuple[int, ...] = tuple(sorted({*eos_ids, *([] if eos is None else [eos])}))

    def _id(self, mark: str) -> int | None:
        return self.pieces.token_to_id(self.marks[mark]) if mark in self.marks else None

    def __len__(self) -> int:
        return self.pieces.get_vocab_size()

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Ids; <bos> comes first unless it is told not to, or the text begins with it."""
        ids = self.pieces.encode(text, add_special_tokens=False).ids
        return [self.bos_id, *ids] if bos and self.bos_id is not None and ids[:1] != [self.bos_id] else ids

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text; marks such as <bos> are shown only if `special`."""
        return self.pieces.decode(list(ids), skip_special_tokens=not special)

    def stream(self, ids: Iterator[int], special: bool = False) -> Iterator[str]:
        """For each id the text it completes, empty while a character is not whole; at the end, what is left."""
        held: list[int] = []  # from the last token that was said: how a token reads may hang on the one before
        before = ""
        for token in ids:
            held.append(token)
            text = self.decode(held, special)
            if text.endswith(UNFINISHED):
                yield ""
                continue
            yield text[len(before) :]
            held, before = [token], self.decode([token], special)
            if before.endswith(UNFINISHED) or not text.endswith(before):
                held, before = [], ""  # it read otherwise alone: what follows is read without it
        if left := self.decode(held, special)[len(before) :]:
            yield left

    def render(self, messages: Sequence[Mapping[str, Any]], answer: bool = True, **more: Any) -> str:
        """A conversation as the model was trained to read it; `answer` opens the model's turn."""
        if self.template is None:
            raise ValueError("this tokenizer has no chat template; encode plain text, or use an instructed model")
        given = {"tools": None, "documents": None, "messages": messages, "add_generation_prompt": answer}
        return render(self.template, **given | self.marks | more)

    def chat(self, messages: Sequence[Mapping[str, Any]], answer: bool = True, **more: Any) -> list[int]:
        return self.encode(self.render(messages, answer, **more), bos=False)


def open_tokenizer(folder: Path, config: Mapping[str, Any] | None = None) -> Tokenizer | None:
    """The folder's tokenizer; None where it has none."""
    file = folder / "tokenizer.json"
    if not there(file):
        if not there(folder / "tokenizer.model"):
            return None
        raise ValueError("tokenizer.model is here without the tokenizer.json that AGP reads; transformers can write it")
    try:
        pieces = Pieces.from_buffer(read(file, LARGEST))
    except ValueError as e:
        raise ValueError(f"tokenizer.json is not one: {clean(str(e), 300)}") from e
    pieces.no_truncation()  # the file may ask for either, and text would be lost
    pieces.no_padding()
    settings = optional(folder / "tokenizer_config.json")
    marks = {mark: plain(settings[mark]) for mark in MARKS if settings.get(mark)}
    template = folder / "chat_template.jinja"
    chat = read_text(template) if there(template) else chosen(settings.get("chat_template"))
    return Tokenizer(pieces, marks, eos_ids(folder, config or {}), chat)


def eos_ids(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """Ids that end a text: of generation_config.json, else of config.json."""
    for place in (optional(folder / "generation_config.json"), config, config.get("text_config")):
        ids = place.get("eos_token_id") if isinstance(place, Mapping) else None
        if ids is not None:
            ids = ids if isinstance(ids, list) else [ids]
            if any(type(i) is not int for i in ids):
                raise ValueError(f"eos_token_id is {shown(ids)}; whole numbers are needed")
            return ids
    return []


def optional(file: Path) -> dict[str, Any]:
    return read_json(file) if there(file) else {}


def plain(mark: object) -> str:
    """Older files wrap a mark as {"content": "<bos>", ...}."""
    text = mark.get("content") if isinstance(mark, dict) else mark
    if not isinstance(text, str):
        raise ValueError(f"tokenizer_config.json: {shown(mark)} is no token")
    return text
