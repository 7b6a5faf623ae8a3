"""Numbers of one model: exact answers a family, bits a character of source, and at which block a family is solved."""

import math
from itertools import islice

import numpy as np
import torch

from agp.stats import bootstrap_mean, wilson
from curricula import families, source

WINDOW, STRIDE = 512, 256
BATCH = 32


def encoded(pieces, family: str, split: str, count: int) -> list[tuple[list[int], int]]:
    """(ids, where the answer starts) of unseen items, bare and as a turn in equal parts."""
    rows = []
    for number, item in enumerate(islice(families.items(family, split), count)):
        prompt, end = (families.bare_prompt(item.prompt), 1) if number % 2 else (families.chat_prompt(item.prompt), 5)
        before = [2, *pieces.encode(prompt)]
        rows.append(([*before, *pieces.encode(item.answer), end], len(before)))
    return rows


class Lens:
    """Reads states of a block's output, T D, through the final norm and head, as if the model ended there."""

    def __init__(self, model):
        self.model, self.states = model, []
        self.hooks = [layer.register_forward_hook(self.keep) for layer in model.model.layers]

    def keep(self, _layer, _inputs, output) -> None:
        self.states.append(output)

    def read(self, state: torch.Tensor) -> torch.Tensor:
        inner = self.model.model
        if state.dim() == 3:  # Gemma 3n: all four streams are brought together, as after the last block
            first = state[0]
            size = first.pow(2).mean(-1, keepdim=True).sqrt()
            streams = [first]
            for linear, stream in zip(inner.altup_unembed_projections, state[1:], strict=True):
                x = linear(stream)
                streams.append(x * size / x.pow(2).mean(-1, keepdim=True).clamp(min=1e-5).sqrt())
            state = torch.stack(streams).mean(0)
        return self.model.lm_head(inner.norm(state)).argmax(-1)

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


@torch.no_grad()
def exact_by_block(model, pieces, family: str, split: str, count: int) -> np.ndarray:
    """(items, blocks) of whether every answer token, the end included, is the first choice at that block.

    A greedy answer is exact just when each of its tokens is the first choice after the true ones before it, so one
    forward pass tells what decoding token by token would give (the tests decode and compare).
    """
    rows = sorted(encoded(pieces, family, split, count), key=lambda row: len(row[0]))
    found = []
    lens = Lens(model)
    for at in range(0, len(rows), BATCH):
        part = rows[at : at + BATCH]
        width = max(len(ids) for ids, _ in part)
        tokens = torch.zeros(len(part), width, dtype=torch.long)  # padding on the right cannot be seen from the left
        for row, (ids, _) in enumerate(part):
            tokens[row, : len(ids)] = torch.tensor(ids)
        lens.states.clear()
        model.model(input_ids=tokens, use_cache=False)
        places = [(row, i - 1) for row, (ids, start) in enumerate(part) for i in range(start, len(ids))]
        which, before = torch.tensor(places).T  # only where an answer's token is predicted
        true = tokens[which, before + 1]
        right = torch.stack([lens.read(state[..., which, before, :]) == true for state in lens.states], 1)
        found += [answer.all(0).tolist() for answer in right.split([len(ids) - start for ids, start in part])]
    lens.close()
    return np.array(found)


def first_solved(by_block: np.ndarray) -> int | None:
    """The first block that gets 90 % of what the whole model gets."""
    share = by_block.mean(0)
    return next((i for i, x in enumerate(share) if share[-1] > 0 and x >= 0.9 * share[-1]), None)


def family_table(model, pieces, split: str, count: int) -> dict[str, dict]:
    table = {}
    for family in families.FAMILIES:
        by_block = exact_by_block(model, pieces, family, split, count)
        right = int(by_block[:, -1].sum())
        share, interval = wilson(right, count)
        table[family] = {
            "exact": share,
            "interval": [round(x, 4) for x in interval],
            "items": count,
            "first_solved_block": first_solved(by_block),
            "exact_by_block": [round(float(x), 4) for x in by_block.mean(0)],
        }
    return table


@torch.no_grad()
def bits(model, pieces, text: str) -> float:
    """Bits of a whole document, each token once, with at least STRIDE tokens before it where there are as many."""
    ids = torch.tensor([2, *pieces.encode(text)])
    starts = [0, *range(STRIDE, max(len(ids) - STRIDE, 1), STRIDE)]
    total = 0.0
    for at in range(0, len(starts), 8):
        group = [(s, ids[s : s + WINDOW]) for s in starts[at : at + 8]]
        tokens = torch.zeros(len(group), WINDOW, dtype=torch.long)
        for row, (_, part) in enumerate(group):
            tokens[row, : len(part)] = part
        logits = model(input_ids=tokens, use_cache=False).logits.float()
        for row, (begin, part) in enumerate(group):
            first = 1 if begin == 0 else STRIDE  # what an earlier window scored is context here
            missed = torch.nn.functional.cross_entropy(
                logits[row, first - 1 : len(part) - 1], part[first:], reduction="sum"
            )
            total += missed.item()
    return total / math.log(2)


def source_bits(model, pieces, kind: str) -> dict:
    """Bits a character over whole committed modules, with an interval from resampling modules."""
    texts = source.committed(kind)
    each = [(bits(model, pieces, text), len(text)) for text in texts.values()]
    sums, sizes = zip(*each, strict=True)
    value, interval = bootstrap_mean(sums, 0, sizes)
    return {
        "bits_per_char": value,
        "interval": [round(x, 4) for x in interval],
        "characters": sum(sizes),
        "modules": {name: round(b / n, 4) for name, (b, n) in zip(texts, each, strict=True)},
    }
