"""Training rows as a pure function of the step: source and items, packed, with weights for the loss."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import sentencepiece

from curricula import families, source
from scripts.tiny.shapes import CONTEXT, ROWS, Shape, at

PROMPT_WEIGHT = 0.1
# How often each family is drawn, twice where nothing is said. First nearly alike; then, source being learned, more of
# what takes long; then of what comes within reach; at last of what is not there yet.
ALIKE = {"arithmetic": 4, "code_semantics": 3, "delimiter_tracking": 3, "dead_code": 3, "uncertainty_signalling": 3}
HARD = {
    "arithmetic": 8,
    "code_semantics": 8,
    "delimiter_tracking": 5,
    "refusal_compliance": 5,
    "uncertainty_signalling": 5,
    "json_schema": 3,
    "dead_code": 3,
}
NEAR = {
    "arithmetic": 4,
    "delimiter_tracking": 6,
    "refusal_compliance": 6,
    "uncertainty_signalling": 6,
    "json_schema": 5,
    "dead_code": 5,
    "variable_renaming": 4,
    "copying": 3,
}
LAST = {
    "delimiter_tracking": 8,
    "uncertainty_signalling": 8,
    "json_schema": 7,
    "dead_code": 5,
    "refusal_compliance": 4,
    "variable_renaming": 4,
    "arithmetic": 1,
    "code_semantics": 1,
    "code_syntax": 1,
    "verbosity_control": 1,
}
STAGES = (ALIKE, HARD, NEAR, NEAR, LAST)  # a shape enters the next at its `turns`
DRAWS = [[family for family in families.FAMILIES for _ in range(often.get(family, 2))] for often in STAGES]


@dataclass(frozen=True)
class Batch:
    tokens: np.ndarray  # (rows, CONTEXT)
    documents: np.ndarray  # which document each token belongs to; -1 is padding
    weights: np.ndarray  # weight of predicting the NEXT token from here
    is_item: np.ndarray  # the rows made of items


class Batches:
    def __init__(self, shape: Shape, tokenizer: Path, cache: Path):
        self.shape = shape
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
        self.documents = self.encode_source(cache)
        self.epoch, self.stream, self.order = -1, np.zeros(0, np.uint16), np.zeros(0, np.int64)

    def encode_source(self, cache: Path) -> list[np.ndarray]:
        """Every training module as ids, programs twice and tests once; kept on disk between runs."""
        texts = source.training()
        key = source.digest(
            "".join(sorted(map(source.digest, texts.values()))) + str(self.pieces.serialized_model_proto())
        )
        path = cache / f"source-{key[:12]}.npz"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            encoded = [np.array([2, *self.pieces.encode(t), 1], np.uint16) for _, t in sorted(texts.items())]
            part = path.with_name(path.name + ".part.npz")
            np.savez(part, ids=np.concatenate(encoded), sizes=np.array([len(e) for e in encoded]))
            part.replace(path)
        with np.load(path) as data:
            parts = np.split(data["ids"], np.cumsum(data["sizes"])[:-1])
        tests = [name.startswith("test/") or "/test" in name for name in sorted(texts)]
        return [p for p, test in zip(parts, tests, strict=True) for _ in range(1 if test else 2)]

    def source_row(self, number: int) -> np.ndarray:
        per_epoch = sum(map(len, self.documents)) // CONTEXT
        epoch, row = divmod(number, per_epoch)
        if epoch != self.epoch:
            rng = np.random.default_rng([self.shape.seed, epoch])
            self.epoch = epoch
            self.stream = np.concatenate([self.documents[i] for i in rng.permutation(len(self.documents))])
            self.order = rng.permutation(per_epoch)  # rows of one module must not follow each other for many steps
        row = self.order[row]
        return self.stream[row * CONTEXT : (row + 1) * CONTEXT].astype(np.int64)

    def item_ids(self, index: int, rng: Random, draw: list[str]) -> tuple[list[int], int]:
        """The ids of an item and where its answer starts."""
        item = families.item(rng.choice(draw), "pretrain", index)
        if rng.random() < 0.5:
            prompt, end = families.bare_prompt(item.prompt), 1
        else:
            prompt, end = families.chat_prompt(item.prompt), 5
        before = [2, *self.pieces.encode(prompt)]
        return [*before, *self.pieces.encode(item.answer), end], len(before)

    def item_row(self, number: int, stage: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng, draw = Random(f"{self.shape.seed}/{number}"), at(DRAWS, stage)
        tokens, documents = np.zeros(CONTEXT, np.int64), np.full(CONTEXT, -1, np.int64)
        weights = np.zeros(CONTEXT, np.float32)
        answer_weight, begin = at(self.shape.answer_weight, stage), 0
        for count in range(64):
            ids, start = self.item_ids(number * 64 + count, rng, draw)
            if begin + len(ids) > CONTEXT:
                break
            end = begin + len(ids)
            tokens[begin:end], documents[begin:end] = ids, count
            weights[begin : end - 1] = PROMPT_WEIGHT
            weights[begin + start - 1 : end - 1] = answer_weight
            begin = end
        return tokens, documents, weights

    def stage(self, step: int) -> tuple[int, int]:
        """Which stage a step belongs to, and how many rows of source all steps before it had."""
        bounds = [0, *(turn for turn in self.shape.turns if turn <= step), step]
        lengths = [end - start for start, end in pairwise(bounds)]
        return len(lengths) - 1, sum(n * self.shape.source_rows(stage) for stage, n in enumerate(lengths))

    def batch(self, step: int) -> Batch:
        stage, before = self.stage(step)
        from_source = self.shape.source_rows(stage)
        rows = []
        for k in range(from_source):
            tokens = self.source_row(before + k)
            documents = np.cumsum(tokens == 2)
            weights = np.ones(CONTEXT, np.float32)
            weights[-1] = 0
            weights[:-1][documents[1:] != documents[:-1]] = 0  # nothing predicts the next document's start
            rows.append((tokens, documents, weights))
        rows += [self.item_row(step * ROWS - before + k, stage) for k in range(ROWS - from_source)]
        tokens, documents, weights = (np.stack(x) for x in zip(*rows, strict=True))
        return Batch(tokens, documents, weights, np.arange(ROWS) >= from_source)
