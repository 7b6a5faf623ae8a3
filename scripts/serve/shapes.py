"""Answers as OpenAI's clients read them: whole, or a chunk at a time."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from secrets import token_hex
from typing import Any

from scripts.serve.reply import Chance, Piece


class Shape(ABC):
    """One answer; `agp` of a choice is what was decided of its tokens, where that was asked for."""

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, model: str, prompt: int, trace: bool):
        self.model, self.prompt, self.trace = model, prompt, trace
        self.id, self.created, self.count = f"{self.prefix}-{token_hex(12)}", int(time.time()), 0

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.count,
            "total_tokens": self.prompt + self.count,
        }

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        self.count = sum(piece.token is not None for piece in pieces)
        choice = self.choice(pieces, whole=True) | {"finish_reason": pieces[-1].finish}
        return self.about(self.whole_object) | {"choices": [choice], "usage": self.usage}

    def chunk(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        self.count += sum(piece.token is not None for piece in pieces)
        return self.about(self.chunk_object) | {"choices": [self.choice(pieces) | {"finish_reason": None}]}

    def first(self) -> dict[str, Any] | None:
        """Before any text."""
        return None

    def last(self, finish: str) -> dict[str, Any]:
        return self.about(self.chunk_object) | {"choices": [self.ending() | {"finish_reason": finish}]}

    def used(self) -> dict[str, Any]:
        return self.about(self.chunk_object) | {"choices": [], "usage": self.usage}

    def about(self, what: str) -> dict[str, Any]:
        return {"id": self.id, "object": what, "created": self.created, "model": self.model}

    def choice(self, pieces: Sequence[Piece], whole: bool = False) -> dict[str, Any]:
        said = self.said("".join(piece.text for piece in pieces), whole)
        chances = [piece.chance for piece in pieces if piece.chance]
        found = {"index": 0} | said | {"logprobs": self.logprobs(chances) if chances else None}
        return found | ({"agp": [piece.trace for piece in pieces if piece.trace]} if self.trace else {})

    @abstractmethod
    def ending(self) -> dict[str, Any]:
        """What a choice holds when there is no more text."""

    @abstractmethod
    def said(self, text: str, whole: bool) -> dict[str, Any]:
        """The text, as a choice holds it."""

    @abstractmethod
    def logprobs(self, chances: Sequence[Chance]) -> dict[str, Any]:
        """How likely each token was, and which others."""


class Chat(Shape):
    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self) -> dict[str, Any]:
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return self.about(self.chunk_object) | {"choices": [choice]}

    def ending(self) -> dict[str, Any]:
        return {"index": 0, "delta": {}, "logprobs": None}

    def said(self, text: str, whole: bool) -> dict[str, Any]:
        whole_message = {"message": {"role": "assistant", "content": text, "refusal": None}}
        return whole_message if whole else {"delta": {"content": text}}

    def logprobs(self, chances: Sequence[Chance]) -> dict[str, Any]:
        content = []
        for of in chances:
            others = [entry(Chance(text, logprob, [])) for text, logprob in of.others]
            content.append(entry(of) | {"top_logprobs": others})
        return {"content": content, "refusal": None}


class Completion(Shape):
    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"
    offset = 0

    def ending(self) -> dict[str, Any]:
        return {"index": 0, "text": "", "logprobs": None}

    def said(self, text: str, whole: bool) -> dict[str, Any]:
        return {"text": text}

    def logprobs(self, chances: Sequence[Chance]) -> dict[str, Any]:
        offsets = []
        for of in chances:
            offsets.append(self.offset)
            self.offset += len(of.text)
        return {
            "tokens": [of.text for of in chances],
            "token_logprobs": [of.logprob for of in chances],
            "top_logprobs": [dict(of.others) for of in chances],
            "text_offset": offsets,
        }


def entry(of: Chance) -> dict[str, Any]:
    return {"token": of.text, "logprob": of.logprob, "bytes": of.bytes}


SHAPES: dict[str, type[Shape]] = {"chat": Chat, "completion": Completion}
