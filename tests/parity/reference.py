"""transformers as the judge: it builds, saves and runs; our loader reads what it saved.

The judge runs in float64, or its own rounding would be measured along with ours.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx.utils import tree_flatten
from torch.nn import functional as F
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig, Gemma4ForCausalLM, Gemma4TextConfig
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nRMSNorm, Gemma3nTextAltUp
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm

import agp
from agp.losses import next_token
from agp.models.decoder import Decoder
from agp.sites import Site, record
from export.ruler import Distance, measure
from tests.toys import config_dict, spread

CLASSES = {"gemma4": (Gemma4TextConfig, Gemma4ForCausalLM), "gemma3n": (Gemma3nTextConfig, Gemma3nForCausalLM)}


def wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def norm(self, x):
    out = self._norm(wide(x))
    return (out * wide(self.weight) if self.with_scale else out).type_as(x)


def modalities(self, x):
    return torch.tanh(wide(self.modality_router(self.router_norm(x) * self.router_input_scale))).type_as(x)


# theirs, but for the step down to float32, which would make a float64 judge a float32 one
Gemma4RMSNorm.forward = Gemma3nRMSNorm.forward = norm
Gemma3nTextAltUp.compute_router_modalities = modalities


class Pair(NamedTuple):
    theirs: torch.nn.Module
    ours: Decoder
    tokens: np.ndarray  # B L


def build(family: str, name: str, seed: int = 0) -> torch.nn.Module:
    """Their model with weights that make every part of a block matter; as initialised, half of AltUp is silent."""
    config_class, model_class = CLASSES[family]
    torch.manual_seed(seed)
    model = model_class._from_config(config_class(**config_dict(family, name)), attn_implementation="sdpa")
    scalars = [(path, b) for path, b in model.named_buffers() if path.endswith("layer_scalar")]
    with torch.no_grad():
        for path, weight in [*model.named_parameters(), *scalars]:
            weight.normal_(*spread(path, weight.ndim))
    # their evaluation never clips AltUp's coefficients, their training does; ours is one network, so it always does
    return model.train(name == "clipped coefficients")


def make_pair(family: str, name: str, folder: Path, seed: int = 0) -> Pair:
    theirs = build(family, name, seed)
    theirs.save_pretrained(folder)
    tokens = np.random.default_rng(seed).integers(1, 96, (2, 19))
    return Pair(theirs.double(), agp.load(folder).model, tokens)


def run(model: torch.nn.Module, tokens: np.ndarray, **how):
    # asking for states keeps them from cutting per-layer inputs short, which fails where there are none
    return model(torch.from_numpy(tokens), use_cache=True, output_hidden_states=True, **how)


def array(t: torch.Tensor) -> np.ndarray:
    return wide(t.detach()).numpy()


def forward(pair: Pair) -> Iterator[Distance]:
    """Logits, and the state after every block: all AltUp streams of it for Gemma 3n."""
    theirs, ours, tokens = pair
    with torch.no_grad():
        expected = run(theirs, tokens)
    last, states = ours.config.num_layers - 1, {}
    out = ours(tokens, visit=record(states, [Site(i, "block") for i in range(last + 1)]))
    yield measure("logits", out.logits, array(expected.logits))
    for (i, _), state in states.items():
        hidden = expected.hidden_states[i + 1]
        if state.ndim == 4:
            hidden = hidden.permute(1, 2, 0, 3)
        elif i == last:
            state = ours.normed(state)  # their last entry comes after the final norm
        yield measure(f"block {i}", state, array(hidden))


def steps(pair: Pair, cuts: tuple[int, ...]) -> Iterator[Distance]:
    """Both with a cache, in the same pieces."""
    theirs, ours, tokens = pair
    cache, past = ours.make_cache(), None
    for a, b in zip((0, *cuts), (*cuts, tokens.shape[1]), strict=True):
        with torch.no_grad():
            expected = run(theirs, tokens[:, a:b], past_key_values=past)
        past = expected.past_key_values
        yield measure(f"tokens {a}..{b}", ours(tokens[:, a:b], cache=cache).logits, array(expected.logits))


def gradients(pair: Pair) -> Iterator[Distance]:
    """The loss and its gradient for every parameter that they have."""
    theirs, ours, tokens = pair
    theirs.zero_grad()
    targets = torch.from_numpy(tokens[:, 1:]).flatten()
    expected = F.cross_entropy(run(theirs, tokens).logits[:, :-1].flatten(0, 1), targets)
    expected.backward()
    weights = dict(tree_flatten(ours.parameters()))

    def loss(model):
        hidden = model.blocks(model.embed(mx.array(tokens))).hidden[:, :-1].flatten(0, 1)
        summed, count = next_token(model, hidden, mx.array(tokens[:, 1:]).flatten(), mx.ones(hidden.shape[0]), chunk=50)
        return summed / count

    value, grads = nn.value_and_grad(ours, loss)(ours)
    yield measure("loss", value, array(expected))
    got = dict(tree_flatten(grads))
    wanted = {
        path.removeprefix("model."): array(p.grad if p.grad is not None else p * 0)
        for path, p in theirs.named_parameters()
    }
    assert got.keys() == wanted.keys()
    for path, grad in got.items():
        if path == "embed_tokens_per_layer.weight":  # their row of padding learns nothing; ids beyond the table read it
            grad, wanted[path] = grad[1:], wanted[path][1:]
        if path.endswith("prediction_coefs.weight"):  # they cut the weight itself, so their gradient misses the cut
            wanted[path] = np.where(np.abs(weights[path]) > ours.config.altup_coef_clip, 0, wanted[path])
        yield measure(path, grad, wanted[path])
