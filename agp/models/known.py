"""What config.json of the public checkpoints says of their text models: for estimates before anything is downloaded."""

from typing import Any

BOTH: dict[str, Any] = {
    "num_attention_heads": 8,
    "head_dim": 256,
    "hidden_size_per_layer_input": 256,
    "sliding_window": 512,
    "vocab_size_per_layer_input": 262_144,
    "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}
GEMMA4 = BOTH | {
    "model_type": "gemma4_text",
    "global_head_dim": 512,
    "vocab_size": 262_144,
    "max_position_embeddings": 131_072,
}
GEMMA3N = BOTH | {
    "model_type": "gemma3n_text",
    "hidden_size": 2048,
    "num_key_value_heads": 2,
    "laurel_rank": 64,
    "altup_num_inputs": 4,
    "vocab_size": 262_400,
    "max_position_embeddings": 32_768,
}
KNOWN: dict[str, dict[str, Any]] = {
    "google/gemma-4-E2B-it": GEMMA4
    | {
        "hidden_size": 1536,
        "num_hidden_layers": 35,
        "num_kv_shared_layers": 20,
        "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7,
        "intermediate_size": 6144,
        "use_double_wide_mlp": True,
        "num_key_value_heads": 1,
    },
    "google/gemma-4-E4B-it": GEMMA4
    | {
        "hidden_size": 2560,
        "num_hidden_layers": 42,
        "num_kv_shared_layers": 18,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 7,
        "intermediate_size": 10_240,
        "num_key_value_heads": 2,
    },
    "google/gemma-3n-E2B-it": GEMMA3N
    | {
        "num_hidden_layers": 30,
        "num_kv_shared_layers": 10,
        "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 6,
        "intermediate_size": 8192,
    },
    "google/gemma-3n-E4B-it": GEMMA3N
    | {
        "num_hidden_layers": 35,
        "num_kv_shared_layers": 15,
        "layer_types": [*["sliding_attention"] * 4, "full_attention"] * 7,
        "intermediate_size": 16_384,
    },
}
