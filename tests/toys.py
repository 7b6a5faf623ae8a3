"""Toy configs of both families that span what a config may say, and models of them with weights that make them talk."""

import mlx.core as mx
from mlx.utils import tree_map_with_path

from agp.models import gemma3n, gemma4
from agp.models.decoder import Decoder

FAMILIES = {"gemma4": gemma4, "gemma3n": gemma3n}
FIVE = ["sliding_attention"] * 4 + ["full_attention"]
SIX = ["sliding_attention", "full_attention"] * 3

BASE = {
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "layer_types": SIX,
    "num_kv_shared_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size": 96,
    "vocab_size_per_layer_input": 96,
    "sliding_window": 6,
    "max_position_embeddings": 128,
    "final_logit_softcapping": 30.0,
}
BOTH = {
    "shares some": {},
    "shares none": {"num_kv_shared_layers": 0},
    "shares most": {"num_kv_shared_layers": 4},
    "five to one": {"num_hidden_layers": 10, "layer_types": FIVE * 2, "num_kv_shared_layers": 5},
    "a window larger than the text": {"sliding_window": 64},
    "a window of two": {"sliding_window": 2},
    "one head of keys": {"num_key_value_heads": 1},
    "as many heads of keys as of queries": {"num_key_value_heads": 4},
    "other rope": {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 9000.0, "factor": 4.0},
        }
    },
    "biases in the attention": {"attention_bias": True},
}
GRID = {
    "gemma4": BOTH
    | {
        "shares some": {"global_head_dim": 16, "use_double_wide_mlp": True},
        "no per-layer inputs": {"hidden_size_per_layer_input": 0, "global_head_dim": 16},
        "keys that are values": {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "global_head_dim": 16},
        "no soft cap": {"final_logit_softcapping": None, "global_head_dim": 8},
        "its own head": {"tie_word_embeddings": False, "global_head_dim": 32},
        "half of a head turns": {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1e6},
            },
            "global_head_dim": 16,
        },
    },
    "gemma3n": BOTH
    | {
        "shares some": {"activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0, 0.0, 0.0]},
        "sparse everywhere": {"activation_sparsity_pattern": [0.5, 0.7, 0.8, 0.9, 0.95, 0.3]},
        "a width for each block": {"intermediate_size": [48, 64, 32, 48, 16, 80]},
        "two streams": {"altup_num_inputs": 2},
        "three streams, another active": {"altup_num_inputs": 3, "altup_active_idx": 2},
        "another active stream": {"altup_active_idx": 1},
        "no correction scale": {"altup_correct_scale": False},
        "clipped coefficients": {"altup_coef_clip": 0.1},
        "more words than rows": {"vocab_size_per_layer_input": 80},
    },
}
CASES = [(family, name) for family, grid in GRID.items() for name in grid]


def config_dict(family: str, name: str) -> dict:
    own = {"global_head_dim": 16} if family == "gemma4" else {"laurel_rank": 8}
    return BASE | own | GRID[family][name]


def spread(path: str, axes: int) -> tuple[float, float]:
    """Mean and deviation of a random weight: every part has a say, yet none so loud that rounding is blown up."""
    if path.endswith(("q_norm.weight", "k_norm.weight")) or "layernorm" in path or "post_" in path:
        return 0.5, 0.1
    if axes == 1:
        return 1.0, 0.2
    return 0.0, 0.4 if "embed_tokens" in path else 0.12


def random_weights(model: Decoder) -> None:
    def draw(path: str, a: mx.array) -> mx.array:
        mean, deviation = spread(path, a.ndim)
        return mean + deviation * mx.random.normal(a.shape)

    model.update(tree_map_with_path(draw, model.parameters()))
    mx.eval(model.parameters())


def toy(family: str = "gemma4", name: str = "shares some", **changes) -> Decoder:
    module = FAMILIES[family]
    model = module.Model(module.Config.from_dict(config_dict(family, name) | changes))
    random_weights(model)
    return model


def text(rows: int = 2, length: int = 17, seed: int = 0) -> mx.array:
    return mx.random.randint(1, 96, (rows, length), key=mx.random.key(seed))
