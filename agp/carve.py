"""A nested model as a checkpoint of its own: what transformers opens and gives the same logits for."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from agp.models.gemma3n import Config
from agp.regimes import Narrow, Nested

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
ROWS = 4096  # of the per-layer table read at a time


def carve(model: Nested, folder: str | Path, source: str | Path | None = None) -> Path:
    """Write `model` to `folder`, which must not exist; `source` is where its tokenizer is copied from."""
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already; carve into a new folder")
    if odd := [path for path, m in model.named_modules() if isinstance(m, nn.QuantizedLinear)]:
        raise ValueError(f"{len(odd)} layers are quantized ({odd[0]}, ...); load the model unquantized to carve it")
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True)
    try:
        weights = {f"model.{name}": mx.contiguous(value) for name, value in tensors(model).items()}
        mx.save_safetensors(str(part / "model.safetensors"), weights, {"format": "pt"})
        dtype = str(model.norm.weight.dtype).removeprefix("mlx.core.")
        (part / "config.json").write_text(json.dumps(config_dict(model.config) | {"dtype": dtype}, indent=2))
        for name in TEXT_FILES:
            if source is not None and (Path(source) / name).exists():
                shutil.copyfile(Path(source) / name, part / name)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def tensors(model: Nested) -> dict[str, mx.array]:
    """Names as in a checkpoint: blocks numbered anew, narrow layers cut, no per-layer inputs for dropped blocks."""
    out = {}
    for name, value in tree_flatten(model.parameters()):
        if name.startswith("embed_tokens_per_layer.") or name.startswith("per_layer_model_projection."):
            continue
        out[name.replace(".linear.weight", ".weight")] = value
    for path, module in model.named_modules():
        if isinstance(module, Narrow):
            weight = out[f"{path}.weight"]
            out[f"{path}.weight"] = weight[:, : module.width] if module.inputs else weight[: module.width]
    for i, layer in enumerate(model.layers):
        if not layer.self_attn.owns:
            for spare in ("k_proj", "v_proj", "k_norm"):
                out.pop(f"layers.{i}.self_attn.{spare}.weight", None)
    blocks, told = model.whole.config.num_layers, model.config.hidden_size_per_layer_input
    kept, table = mx.array(model.kept), model.embed_tokens_per_layer
    rows = [
        mx.arange(a, min(a + ROWS, model.config.vocab_size_per_layer_input))
        for a in range(0, model.config.vocab_size_per_layer_input, ROWS)
    ]
    parts = [table(ids).reshape(ids.size, blocks, told)[:, kept].reshape(ids.size, -1) for ids in rows]
    out["embed_tokens_per_layer.weight"] = mx.concatenate(parts)
    projection = model.per_layer_model_projection.weight
    out["per_layer_model_projection.weight"] = projection.reshape(blocks, told, -1)[kept].reshape(
        -1, projection.shape[1]
    )
    return out


def config_dict(c: Config) -> dict:
    """config.json of a text-only Gemma 3n, in the spelling of transformers 5."""
    same = (
        "hidden_size num_attention_heads num_key_value_heads head_dim num_kv_shared_layers sliding_window vocab_size "
        "vocab_size_per_layer_input max_position_embeddings rms_norm_eps final_logit_softcapping tie_word_embeddings "
        "hidden_size_per_layer_input altup_num_inputs altup_active_idx altup_coef_clip altup_correct_scale laurel_rank "
        "attention_bias"
    ).split()
    return {name: getattr(c, name) for name in same} | {
        "architectures": ["Gemma3nForCausalLM"],
        "model_type": "gemma3n_text",
        "num_hidden_layers": c.num_layers,
        "layer_types": list(c.layer_types),
        "intermediate_size": list(c.widths),
        "activation_sparsity_pattern": list(c.sparsity),
        "rope_parameters": {kind: dict(how) for kind, how in c.rope.items()},
    }
