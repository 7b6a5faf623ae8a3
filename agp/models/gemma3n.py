"""Gemma 3n, text: E2B, E4B and the widths between. The residual is four AltUp streams, `B L 4 D`; one is active."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from agp.fused import RMSNorm
from agp.layers import Attention, gelu_times, root, tail
from agp.models.decoder import Decoder, Run
from agp.models.layout import Layout, ropes, typed
from agp.models.tensors import shown
from agp.products import Embedding, Linear
from agp.sites import Site

ROPE = {"sliding_attention": 10_000.0, "full_attention": 1_000_000.0}
DEFAULTS = {  # what transformers leaves out of config.json when it is so
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_kv_shared_layers": 15,
    "vocab_size": 262_400,
    "max_position_embeddings": 32_768,
    "final_logit_softcapping": 30.0,
}


@dataclass(frozen=True, kw_only=True)
class Config(Layout):
    """`from_dict` reads both spellings of config.json: one value for all blocks, or one for each."""

    widths: tuple[int, ...]
    sparsity: tuple[float, ...]
    num_key_value_heads: int = 2
    head_dim: int = 256
    hidden_size_per_layer_input: int = 256
    altup_num_inputs: int = 4
    altup_active_idx: int = 0
    altup_coef_clip: float | None = 120.0
    altup_correct_scale: bool = True
    laurel_rank: int = 64
    attention_bias: bool = False
    spare_kv: bool = False  # borrowers keep the keys and values they do not use, for regimes in which they do

    def faults(self) -> list[str]:
        wrong = []
        if not all(map(fits, self.sparsity)):
            wrong.append(f"activation_sparsity_pattern holds {shown(self.sparsity)}; 0 <= p < 1 is needed")
        if type(self.altup_active_idx) is not int or not 0 <= self.altup_active_idx < self.altup_num_inputs:
            odd = shown(self.altup_active_idx)
            wrong.append(f"altup_active_idx is {odd}; one of the {self.altup_num_inputs} streams is needed")
        return wrong

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        c: dict[str, Any] = DEFAULTS | {k: v for k, v in given.items() if v is not None or k in ("altup_coef_clip",)}
        count = c["num_hidden_layers"]
        kinds = c.get("layer_types") or ["sliding_attention" if (i + 1) % 5 else "full_attention" for i in range(count)]
        native = [0.95 if i < 10 < count else 0.0 for i in range(count)]
        theta = {"sliding_attention": c.get("rope_local_base_freq"), "full_attention": c.get("rope_theta")}
        known = {k: {"rope_type": "default", "rope_theta": ROPE[k] if theta[k] is None else theta[k]} for k in ROPE}
        known["full_attention"] |= typed(c.get("rope_scaling", {}))
        rope = ropes(c.get("rope_parameters", {}), known)
        return cls.read(
            c,
            layer_types=tuple(kinds),
            rope=rope,
            widths=each(c["intermediate_size"], count),
            sparsity=each(c.get("activation_sparsity_pattern", native), count),
        )


def fits(sparsity: object) -> bool:
    return type(sparsity) in (int, float) and 0 <= sparsity < 1  # pyright: ignore[reportOperatorIssue]


def each(value: Any, count: int) -> tuple:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * count


class Laurel(nn.Module):
    """Learned augmented residual: a low-rank detour around the attention."""

    def __init__(self, config: Config):
        super().__init__()
        self.linear_left = Linear(config.hidden_size, config.laurel_rank, bias=False)
        self.linear_right = Linear(config.laurel_rank, config.hidden_size, bias=False)
        self.post_laurel_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.post_laurel_norm(self.linear_right(self.linear_left(x)))


class MLP(nn.Module):
    def __init__(self, dim: int, width: int, sparsity: float):
        super().__init__()
        self.width, self.sparsity = width, sparsity
        self.gate_proj = Linear(dim, width, bias=False)
        self.up_proj = Linear(dim, width, bias=False)
        self.down_proj = Linear(width, dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        gate = self.gate_proj(x)
        if self.sparsity > 0:
            gate = largest(gate, self.sparsity)
        return self.down_proj(gelu_times(gate, self.up_proj(x)))


def largest(gate: mx.array, sparsity: float) -> mx.array:
    """Keep about the top share of a row that looks Gaussian: what lies above mean + z std, moved down to zero."""
    exact = gate.astype(mx.float32)
    mean = exact.mean(-1, keepdims=True)
    std = root(mx.square(exact - mean).mean(-1, keepdims=True))
    return mx.maximum(exact - (mean + std * NormalDist().inv_cdf(sparsity)), 0).astype(gate.dtype)


class AltUp(nn.Module):
    """Alternating updates: predict all streams from all, run the block on one, correct all by what that one learned."""

    def __init__(self, config: Config):
        super().__init__()
        streams, dim = config.altup_num_inputs, config.hidden_size
        self.active, self.clip = config.altup_active_idx, config.altup_coef_clip
        self.correct_output_scale = mx.zeros((dim,))
        self.correction_coefs = nn.Linear(streams, streams, bias=False)
        self.prediction_coefs = nn.Linear(streams, streams * streams, bias=False)
        self.modality_router = nn.Linear(dim, streams, bias=False)
        self.router_norm = RMSNorm(dim, config.rms_norm_eps)

    def predict(self, x: mx.array) -> mx.array:
        mixing = self._coefs(self.prediction_coefs, x[:, :, self.active])
        return x + mixing.reshape(*x.shape[:2], x.shape[2], x.shape[2]) @ x

    def correct(self, predicted: mx.array, activated: mx.array) -> mx.array:
        news = activated - predicted[:, :, self.active]
        return predicted + news[:, :, None] * (1 + self._coefs(self.correction_coefs, activated))[..., None]

    def _coefs(self, linear: nn.Module, x: mx.array) -> mx.array:
        """Router outputs are within +-1, so clipping the weights as they are used bounds the coefficients."""
        routed = mx.tanh(self.modality_router(self.router_norm(x) * x.shape[-1] ** -1.0).astype(mx.float32))
        routed = routed.astype(x.dtype)
        if self.clip is None or not isinstance(linear, nn.Linear):
            return linear(routed)
        return routed @ mx.clip(linear.weight, -self.clip, self.clip).T


class Block(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        dim, eps, told = config.hidden_size, config.rms_norm_eps, config.hidden_size_per_layer_input
        self.layer, self.correct_scale = layer, config.altup_correct_scale
        self.altup = AltUp(config)
        self.input_layernorm = RMSNorm(dim, eps)
        self.laurel = Laurel(config)
        self.self_attn = Attention(
            dim=dim,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            eps=eps,
            rope=config.rope[config.layer_types[layer]],
            window=config.window(layer),
            owns=layer < config.num_producers or config.spare_kv,
            bias=config.attention_bias,
        )
        self.self_attn.owns = layer < config.num_producers
        self.post_attention_layernorm = RMSNorm(dim, eps)
        self.pre_feedforward_layernorm = RMSNorm(dim, eps)
        self.mlp = MLP(dim, config.widths[layer], config.sparsity[layer])
        self.post_feedforward_layernorm = RMSNorm(dim, eps)
        self.per_layer_input_gate = Linear(dim, told, bias=False)
        self.per_layer_projection = Linear(told, dim, bias=False)
        self.post_per_layer_input_norm = RMSNorm(dim, eps)

    def __call__(self, x: mx.array, run: Run) -> mx.array:
        predicted = self.altup.predict(x)

        def attend(x):
            normed = self.input_layernorm(x)
            out, run.made = self.self_attn(normed, run.place, run.borrowed, run.cache, run.last)
            return self.post_attention_layernorm(out)

        def feed(x):
            return self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))

        active = predicted[:, :, self.altup.active]
        added = tail(run.visit(Site(self.layer, "attn"), attend, active), run.last)
        predicted, active = tail(predicted, run.last), tail(active, run.last)
        y = (active + added + self.laurel(self.input_layernorm(active))) * 2**-0.5
        y = y + run.visit(Site(self.layer, "mlp"), feed, y)
        return self.tell(self.altup.correct(predicted, y), tail(run.inputs, run.last))

    def tell(self, x: mx.array, inputs: mx.array) -> mx.array:
        """What this block is told about the tokens goes to every stream but the first."""
        first = x[:, :, self.altup.active]
        if self.correct_scale:
            first = first * self.altup.correct_output_scale
        told = self.per_layer_projection(gelu_times(self.per_layer_input_gate(first), inputs))
        told = self.post_per_layer_input_norm(told)[:, :, None]
        return mx.concatenate([x[:, :, :1], x[:, :, 1:] + told], axis=2)


class Model(Decoder):
    def __init__(self, config: Config):
        super().__init__(config)
        dim, told, others = config.hidden_size, config.hidden_size_per_layer_input, config.altup_num_inputs - 1
        self.embed_tokens = Embedding(config.vocab_size, dim)
        self.embed_tokens_per_layer = Embedding(config.vocab_size_per_layer_input, config.num_layers * told)
        self.per_layer_model_projection = Linear(dim, config.num_layers * told, bias=False)
        self.per_layer_projection_norm = RMSNorm(told, config.rms_norm_eps)
        self.altup_projections = [Linear(dim, dim, bias=False) for _ in range(others)]
        self.layers = [Block(config, i) for i in range(config.num_layers)]
        self.altup_unembed_projections = [Linear(dim, dim, bias=False) for _ in range(others)]
        self.norm = RMSNorm(dim, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(dim, config.vocab_size, bias=False)

    def start(self, vectors: mx.array) -> mx.array:
        others = [same_size(linear(vectors), vectors) for linear in self.altup_projections]
        return mx.stack([vectors, *others], axis=2)

    def together(self, hidden: mx.array) -> mx.array:
        first = hidden[:, :, 0]
        streams = [same_size(f(hidden[:, :, i + 1]), first) for i, f in enumerate(self.altup_unembed_projections)]
        return mx.stack([first, *streams]).mean(0)

    def active(self, site: Site, x: mx.array) -> mx.array:
        return x[:, :, self.config.altup_active_idx] if site.part == "block" else x


def same_size(x: mx.array, like: mx.array) -> mx.array:
    """Scale `x` to the root mean square of `like`; its own is floored, so a row of zeros stays zeros."""
    own, other = (mx.square(a.astype(mx.float32)).mean(-1, keepdims=True) for a in (x, like))
    return (x * (root(other) / mx.sqrt(mx.maximum(own, 1e-5)))).astype(x.dtype)
