"""The trained models, read by transformers and by us."""

from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma3nForCausalLM, Gemma4ForCausalLM

import agp
from curricula import source
from tests.parity.compared import judge
from tests.parity.reference import Pair, forward, gradients, steps

ASSETS = Path(agp.__file__).parent / "assets"
CLASSES = {"gemma4": Gemma4ForCausalLM, "gemma3n": Gemma3nForCausalLM}
TEXTS, TOKENS = 4, 96


@cache
def models(family: str):
    folder = ASSETS / f"tiny-{family}"
    loaded = agp.load(folder, dtype="float32")
    theirs = CLASSES[family].from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()
    return theirs, loaded.model, loaded.tokenizer


def tiny_pairs(family: str) -> Iterator[Pair]:
    """On each text by itself, where terms of a gradient cancel most; unseen, so that the loss is one."""
    theirs, ours, tokenizer = models(family)
    for text in islice(source.committed("heldout").values(), TEXTS):
        yield Pair(theirs, ours, np.array([tokenizer.encode(text)[:TOKENS]]))


@pytest.mark.slow
@pytest.mark.parametrize("family", CLASSES)
def test_the_trained_model_is_the_same_in_transformers(family):
    for pair in tiny_pairs(family):
        assert pair.tokens.shape[1] > pair.ours.config.sliding_window  # or the window would not show
        judge([*forward(pair), *steps(pair, (40, 41, 42)), *gradients(pair)])
