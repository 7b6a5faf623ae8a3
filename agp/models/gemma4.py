"""Gemma 4, text: E2B, E4B and every dense config of the family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from agp.fused import RMSNorm
from agp.layers import Attention, gelu_times, tail
from agp.models.decoder import Decoder, Run
from agp.models.layout import Layout, ropes, whole
from agp.products import Embedding, Linear
from agp.sites import Site

ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
DEFAULTS = {  # what transformers leaves out of config.json when it is so
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 30,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "global_head_dim": 512,
    "num_kv_shared_layers": 0,
}


@dataclass(frozen=True, kw_only=True)
class Config(Layout):
    """Per-block facts are tuples; `from_dict` reads both spellings of config.json (facts by type, or by block)."""

    head_dims: tuple[int, ...]
    kv_heads: tuple[int, ...]
    widths: tuple[int, ...]
    hidden_size_per_layer_input: int = 256
    attention_k_eq_v: bool = False
    attention_bias: bool = False

    def faults(self) -> list[str]:
        rows, ids = self.vocab_size_per_layer_input, self.vocab_size
        if self.hidden_size_per_layer_input and whole(rows) and whole(ids) and rows < ids:
            return [f"vocab_size_per_layer_input is {rows} for a vocabulary of {ids}; Gemma 4 has a row for every id"]
        return []

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        c: dict[str, Any] = DEFAULTS | {k: v for k, v in given.items() if v is not None}
        if c.get("enable_moe_block"):
            raise ValueError("this is a Gemma 4 with experts (enable_moe_block); AGP runs the dense ones")
        if c.get("use_bidirectional_attention") == "all":
            raise ValueError("use_bidirectional_attention = 'all' makes an encoder of Gemma 4; AGP runs decoders")
        count = c["num_hidden_layers"]
        kinds = c.get("layer_types") or ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(count)]
        first_borrower = count - c["num_kv_shared_layers"]
        wide = [2 if c.get("use_double_wide_mlp") and i >= first_borrower else 1 for i in range(count)]
        heads = [per_block(c, i, kind) for i, kind in enumerate(kinds)]
        rope = ropes(c.get("rope_parameters", {}), ROPE)
        stray = "rope_scaling" in c or "rope_theta" in c and c["rope_theta"] != rope["full_attention"]["rope_theta"]
        if stray:
            raise ValueError(
                "rope_theta and rope_scaling have no effect in Gemma 4; rope_parameters, by layer type, have"
            )
        return cls.read(
            c,
            layer_types=tuple(kinds),
            rope=rope,
            head_dims=tuple(h["head_dim"] for h in heads),
            kv_heads=tuple(h["num_key_value_heads"] for h in heads),
            widths=tuple(c["intermediate_size"] * w for w in wide),
        )


def per_block(c: Mapping[str, Any], i: int, kind: str) -> dict[str, int]:
    """Head width and key/value heads of block `i`: from `per_layer_config` where there is one, else by its type."""
    facts = {k: c[k] for k in ("head_dim", "num_key_value_heads")}
    if "per_layer_config" in c:
        own = c["per_layer_config"]
        return facts | {k: v for k, v in (own.get(str(i)) or own.get(i) or {}).items() if k in facts}
    if kind == "full_attention":
        facts["head_dim"] = c["global_head_dim"]
        if c.get("attention_k_eq_v"):
            facts["num_key_value_heads"] = c.get("num_global_key_value_heads", c["num_key_value_heads"])
    return facts


class MLP(nn.Module):
    def __init__(self, dim: int, width: int):
        super().__init__()
        self.gate_proj = Linear(dim, width, bias=False)
        self.up_proj = Linear(dim, width, bias=False)
        self.down_proj = Linear(width, dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(gelu_times(self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        dim, eps = config.hidden_size, config.rms_norm_eps
        self.layer = layer
        self.input_layernorm = RMSNorm(dim, eps)
        self.self_attn = Attention(
            dim=dim,
            heads=config.num_attention_heads,
            kv_heads=config.kv_heads[layer],
            head_dim=config.head_dims[layer],
            eps=eps,
            rope=config.rope[config.layer_types[layer]],
            window=config.window(layer),
            owns=layer < config.num_producers,
            value_is_key=config.attention_k_eq_v and config.window(layer) is None,
            bias=config.attention_bias,
        )
        self.post_attention_layernorm = RMSNorm(dim, eps)
        self.pre_feedforward_layernorm = RMSNorm(dim, eps)
        self.mlp = MLP(dim, config.widths[layer])
        self.post_feedforward_layernorm = RMSNorm(dim, eps)
        if told := config.hidden_size_per_layer_input:
            self.per_layer_input_gate = Linear(dim, told, bias=False)
            self.per_layer_projection = Linear(told, dim, bias=False)
            self.post_per_layer_input_norm = RMSNorm(dim, eps)
        self.layer_scalar = mx.ones((1,))
        self.freeze(recurse=False, keys=["layer_scalar"])  # a constant of the checkpoint, not a weight

    def __call__(self, x: mx.array, run: Run) -> mx.array:
        def attend(x):
            out, run.made = self.self_attn(self.input_layernorm(x), run.place, run.borrowed, run.cache, run.last)
            return self.post_attention_layernorm(out)

        def feed(x):
            return self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))

        added = run.visit(Site(self.layer, "attn"), attend, x)
        x = tail(x, run.last) + tail(added, run.last)
        x = x + run.visit(Site(self.layer, "mlp"), feed, x)
        if run.inputs is not None:
            told = gelu_times(self.per_layer_input_gate(x), tail(run.inputs, run.last))
            x = x + self.post_per_layer_input_norm(self.per_layer_projection(told))
        return x * self.layer_scalar


class Model(Decoder):
    def __init__(self, config: Config):
        super().__init__(config)
        dim, told = config.hidden_size, config.hidden_size_per_layer_input
        self.embed_tokens = Embedding(config.vocab_size, dim)
        if told:
            self.embed_tokens_per_layer = Embedding(config.vocab_size_per_layer_input, config.num_layers * told)
            self.per_layer_model_projection = Linear(dim, config.num_layers * told, bias=False)
            self.per_layer_projection_norm = RMSNorm(told, config.rms_norm_eps)
        self.layers = [Block(config, i) for i in range(config.num_layers)]
        self.norm = RMSNorm(dim, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(dim, config.vocab_size, bias=False)

    def start(self, vectors: mx.array) -> mx.array:
        return vectors

    def together(self, hidden: mx.array) -> mx.array:
        return hidden

    def active(self, site: Site, x: mx.array) -> mx.array:
        return x
