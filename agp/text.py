"""Text to token ids and back, by the folder's tokenizer.json. Its chat template runs in Jinja's sandbox."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as Pieces
from tokenizers.decoders import DecodeStream

from agp.models.folder import read_json

MARKS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    def __init__(self, pieces: Pieces, marks: Mapping[str, str], eos_ids: Collection[int], template: str | None):
        self.pieces, self.marks, self.template = pieces, dict(marks), template
        self.bos_id, eos, self.pad_id = (self._id(mark) for mark in MARKS[:3])
        self.eos_ids = tuple(sorted({*eos_ids, *([] if eos is None else [eos])}))
        self._chat = None if template is None else sandbox().from_string(template)

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
        """For each id the text it completes, which is empty while a character is not whole."""
        decoding = DecodeStream(skip_special_tokens=not special)
        return (decoding.step(self.pieces, token) or "" for token in ids)

    def render(self, messages: Sequence[Mapping[str, Any]], answer: bool = True, **more: Any) -> str:
        """A conversation as the model was trained to read it; `answer` opens the model's turn."""
        if self._chat is None:
            raise ValueError("this tokenizer has no chat template; encode plain text, or use an instructed model")
        try:
            return self._chat.render(messages=messages, add_generation_prompt=answer, **self.marks | more)
        except (TemplateError, TypeError, KeyError) as e:
            raise ValueError(f"the chat template refuses these messages: {e}") from e

    def chat(self, messages: Sequence[Mapping[str, Any]], answer: bool = True, **more: Any) -> list[int]:
        return self.encode(self.render(messages, answer, **more), bos=False)


def refuse(message: str) -> None:
    raise TemplateError(message)


def sandbox() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    made.globals["raise_exception"] = refuse
    return made


def open_tokenizer(folder: Path, config: Mapping[str, Any] | None = None) -> Tokenizer | None:
    """The folder's tokenizer; None where it has none."""
    file = folder / "tokenizer.json"
    if not file.exists():
        if not (folder / "tokenizer.model").exists():
            return None
        raise ValueError("tokenizer.model is here without the tokenizer.json that AGP reads; transformers can write it")
    try:
        pieces = Pieces.from_buffer(file.read_bytes())
    except ValueError as e:
        raise ValueError(f"tokenizer.json is not one: {e}") from e
    settings = optional(folder / "tokenizer_config.json")
    marks = {mark: plain(settings[mark]) for mark in MARKS if settings.get(mark)}
    template = folder / "chat_template.jinja"
    chat = template.read_text(encoding="utf-8") if template.exists() else settings.get("chat_template")
    try:
        return Tokenizer(pieces, marks, eos_ids(folder, config or {}), chat if isinstance(chat, str) else None)
    except TemplateSyntaxError as e:
        raise ValueError(f"the chat template does not parse: line {e.lineno}: {e.message}") from e


def eos_ids(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """Ids that end a text: of generation_config.json, else of config.json."""
    for place in (optional(folder / "generation_config.json"), config, config.get("text_config")):
        ids = place.get("eos_token_id") if isinstance(place, Mapping) else None
        if ids is not None:
            ids = ids if isinstance(ids, list) else [ids]
            if any(type(i) is not int for i in ids):
                raise ValueError(f"eos_token_id is {ids}; whole numbers are needed")
            return ids
    return []


def optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def plain(mark: object) -> str:
    """Older files wrap a mark as {"content": "<bos>", ...}."""
    text = mark.get("content") if isinstance(mark, dict) else mark
    if not isinstance(text, str):
        raise ValueError(f"tokenizer_config.json: {mark!r} is no token")
    return text
