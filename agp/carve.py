"""A nested model as a checkpoint of its own: what transformers opens and gives the same logits for."""

import json
import shutil
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from agp.artifacts import write_json
from agp.models import gemma3n
from agp.models.gemma3n import Config
from agp.regimes import Narrow, Nested, Regime, nested

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
MARKS = ("bos_token_id", "eos_token_id", "pad_token_id")
ROWS = 4096  # of the per-layer table read at a time


def carve(model: gemma3n.Model, folder: str | Path, source: str | Path | None = None) -> Path:
    """Write `model` to `folder`, which must not exist; tokenizer and marks come from `source`, a checkpoint."""
    folder, whole = Path(folder), model if isinstance(model, Nested) else nested(model, Regime())
    if folder.exists():
        raise ValueError(f"{folder} exists already; carve into a new folder")
    if source is not None and not (Path(source) / "config.json").is_file():
        raise ValueError(f"{source} is no checkpoint to take the tokenizer from: it has no config.json")
    packed = (nn.QuantizedLinear, nn.QuantizedEmbedding)
    if odd := [path for path, m in whole.named_modules() if isinstance(m, packed)]:
        raise ValueError(f"{len(odd)} layers are quantized ({odd[0]}, ...); load the model unquantized to carve it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as part:
        write(whole, Path(part) / folder.name, source)
        (Path(part) / folder.name).rename(folder)
    return folder


def write(model: Nested, folder: Path, source: str | Path | None) -> None:
    folder.mkdir()
    weights = {f"model.{name}": mx.contiguous(value) for name, value in tensors(model).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    config = config_dict(model.config) | {"dtype": str(model.norm.weight.dtype).removeprefix("mlx.core.")}
    if source is not None:
        given = json.loads((Path(source) / "config.json").read_text())
        config |= {mark: given[mark] for mark in MARKS if mark in given}
        for name in TEXT_FILES:
            if (Path(source) / name).exists():
                shutil.copyfile(Path(source) / name, folder / name)
    write_json(folder / "config.json", config)


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
    count = model.config.vocab_size_per_layer_input
    rows = [mx.arange(a, min(a + ROWS, count)) for a in range(0, count, ROWS)]
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
