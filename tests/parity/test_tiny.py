"""The trained models, read by transformers and by us."""

from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma3nForCausalLM, Gemma4ForCausalLM

import agp
from curricula import source
from tests.parity.reference import Pair, forward, gradients, steps
from tests.parity.test_decoders import judge

ASSETS = Path(agp.__file__).parent / "assets"
CLASSES = {"gemma4": Gemma4ForCausalLM, "gemma3n": Gemma3nForCausalLM}
ROWS, TOKENS = 4, 96  # of one text alone the terms of a small gradient may cancel to a hundredth (results/LOG.md)


@cache
def tiny_pair(family: str) -> Pair:
    folder = ASSETS / f"tiny-{family}"
    loaded = agp.load(folder, dtype="float32")
    theirs = CLASSES[family].from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()
    texts = islice(source.committed("heldout").values(), ROWS)  # unseen, so that the loss is one, and its gradient
    return Pair(theirs, loaded.model, np.array([loaded.tokenizer.encode(text)[:TOKENS] for text in texts]))


@pytest.mark.parametrize("family", CLASSES)
def test_the_trained_model_is_the_same_in_transformers(family):
    pair = tiny_pair(family)
    assert pair.tokens.shape[1] > pair.ours.config.sliding_window  # or the window would not show
    judge([*forward(pair), *steps(pair, (40, 41, 42)), *gradients(pair)])
