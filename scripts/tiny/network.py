"""A transformers model of a shape, started well, and switchable between the regimes of its ladder."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Gemma3nForCausalLM, Gemma4ForCausalLM

from scripts.tiny import shapes
from scripts.tiny.attention import NAME

POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm", "post_per_layer_input_norm", "post_laurel_norm")
POST_NORM_START = 0.3


def build(name: str) -> Any:  # the attributes of a module are not known to a type checker
    """The model of a shape in float32, ready to train."""
    shape = shapes.SHAPES[name]
    torch.manual_seed(shape.seed)
    kind: Any = Gemma4ForCausalLM if shape.family == "gemma4" else Gemma3nForCausalLM
    model = kind(shapes.configuration(name)).float()
    start(model)
    for layer in model.model.layers:
        if shape.family == "gemma4":  # a buffer in transformers; learned here, saved under the same name
            value = layer.layer_scalar.detach().clone()
            del layer.layer_scalar
            layer.layer_scalar = nn.Parameter(value)
        else:
            nest(layer)
    model.eval()  # no dropout anywhere; in training mode Gemma 3n rewrites a parameter inside forward
    return model


@torch.no_grad()
def start(model: Any) -> None:
    """Transformers' defaults leave Gemma 3n's per-layer inputs dead (a scale of zero) and attention far too sharp."""
    module: Any
    for path, module in model.named_modules():
        leaf = path.rsplit(".", 1)[-1]
        kind = type(module)
        if kind is nn.Linear and leaf != "lm_head":
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if leaf in ("q_norm", "k_norm"):
            module.weight.fill_(module.weight.numel() ** -0.25)  # the scale of scores is 1: the norms carry 1/sqrt(d)
        if leaf in POST_NORMS:
            module.weight.fill_(POST_NORM_START)
        if leaf == "altup":
            module.correct_output_scale.fill_(1.0)
            nn.init.normal_(module.prediction_coefs.weight, std=0.02)
            nn.init.normal_(module.correction_coefs.weight, std=0.02)
            nn.init.normal_(module.modality_router.weight, std=1.0)
    # Gemma 3n takes the root of an embedding's mean square: a row of zeros (padding) would give infinite gradients.
    model.model.embed_tokens.weight[0].normal_(std=0.02)
    for projections in ("altup_projections", "altup_unembed_projections"):
        for linear in getattr(model.model, projections, ()):
            nn.init.orthogonal_(linear.weight)


def nest(layer: Any) -> None:
    """Give a Gemma 3n block a width (rows of gate and up, columns of down) and a switch to be left out.

    Both are tensors and the rest is masked, not sliced: it is the same function, and one compiled graph serves all.
    """
    mlp, whole = layer.mlp, layer.forward
    sparsity = mlp.activation_sparsity
    cut = torch.distributions.Normal(0, 1).icdf(torch.tensor(sparsity)).item() if sparsity else None
    mlp.register_buffer("inside", torch.ones(mlp.intermediate_size), persistent=False)
    layer.register_buffer("kept", torch.ones((), dtype=torch.bool), persistent=False)

    def narrow(x):
        gate, inside = mlp.gate_proj(x).float(), mlp.inside
        if cut is not None:  # the statistics are those of the slice
            mean = (gate * inside).sum(-1, keepdim=True) / inside.sum()
            spread = (((gate - mean) * inside).square().sum(-1, keepdim=True) / inside.sum()).sqrt()
            gate = F.relu(gate - (mean + spread * cut))
        return mlp.down_proj(mlp.act_fn(gate) * inside * mlp.up_proj(x))

    mlp.forward = narrow
    layer.forward = lambda hidden, *args, **kwargs: torch.where(layer.kept, whole(hidden, *args, **kwargs), hidden)


def switch(model: Any, regime: dict[str, list[int]]) -> None:
    """Turn the model into one of the models nested in it."""
    widths = iter(regime["widths"])
    for index, layer in enumerate(model.model.layers):
        if regime["widths"]:
            layer.kept.fill_(index not in regime["drop"])
            if layer.kept:
                layer.mlp.inside.copy_(torch.arange(layer.mlp.intermediate_size) < next(widths))


def for_training(model: Any) -> None:
    """The same functions, fast on a CPU: packed attention, a bfloat16 stream, AltUp without tiny products."""
    model.config._attn_implementation = NAME
    for table in (model.model.embed_tokens, model.model.embed_tokens_per_layer):
        table.register_forward_hook(lambda _m, _i, out: out.bfloat16() if torch.is_autocast_enabled("cpu") else out)
    for layer in model.model.layers:
        if hasattr(layer, "altup"):
            hasten(layer.altup)


def hasten(altup: Any) -> None:
    """AltUp's 4 x 4 mixing as sums of streams, which fuse, instead of thousands of 4 x 4 matrix products."""
    count = altup.config.altup_num_inputs

    def predict(h):
        mixing = altup.prediction_coefs(altup.compute_router_modalities(h[0])).unflatten(-1, (count, count)).float()
        x = [stream.float() for stream in h]
        mixed = [x[i] + sum(mixing[..., i, j, None] * x[j] for j in range(count)) for i in range(count)]
        return torch.stack(mixed).to(h.dtype)

    def correct(predictions, activated):
        share = altup.correction_coefs(altup.compute_router_modalities(activated)).float() + 1.0
        news = (activated - predictions[0]).float()
        told = [predictions[i].float() + news * share[..., i, None] for i in range(count)]
        return torch.stack(told).to(activated.dtype)

    altup.predict, altup.correct = predict, correct


def losses(model: Any, tokens, masks, weights):
    """Weighted negative log likelihood of each next token, per row: (rows, length)."""
    hidden = model.model(input_ids=tokens, attention_mask=masks, use_cache=False).last_hidden_state
    cap = model.config.final_logit_softcapping
    logits = torch.tanh(model.lm_head(hidden[:, :-1]).float() / cap) * cap
    missed = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1), reduction="none")
    return missed.view(tokens.shape[0], -1) * weights[:, :-1]
