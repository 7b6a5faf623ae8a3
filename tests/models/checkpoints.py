"""Checkpoints for tests: written from toys in moments, or by transformers itself; and ways to spoil them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers

import agp
from agp.models.decoder import Decoder
from tests.toys import config_dict, toy

WEIGHTS = "model.safetensors"


def parameters(model: Decoder) -> dict[str, mx.array]:
    flat: Any = tree_flatten(model.parameters())
    return dict(flat)


def read(file: Path) -> dict[str, mx.array]:
    weights: Any = mx.load(str(file))
    mx.eval(weights)
    return weights


def save(folder: Path, model: Decoder) -> None:
    weights = {f"model.{name}".replace("model.lm_head", "lm_head"): a for name, a in parameters(model).items()}
    mx.save_safetensors(str(folder / WEIGHTS), weights)


def write(folder: Path, family: str = "gemma4", name: str = "shares some", dtype=mx.float32, **changes) -> Decoder:
    """A toy as a checkpoint in the Hugging Face layout; returns the toy."""
    folder.mkdir(parents=True, exist_ok=True)
    model = toy(family, name, **changes)
    model.set_dtype(dtype)
    save(folder, model)
    config = config_dict(family, name) | changes | {"model_type": f"{family}_text"}
    (folder / "config.json").write_text(json.dumps(config))
    return model


def edit_config(folder: Path, **changes) -> None:
    """Set keys of config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_weights(folder: Path, edit, file: str = WEIGHTS) -> None:
    """Hand all tensors of a file, as numpy, to `edit`, which changes the dict in place."""
    weights = load_file(folder / file)
    edit(weights)
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, folder / file)


def shard(folder: Path, count: int = 2) -> None:
    """Spread model.safetensors over several files with an index."""
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    files = {name: f"model-{i * count // len(names) + 1:05}-of-{count:05}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(files.values())):
        save_file({n: weights[n] for n in names if files[n] == file}, folder / file)
    (folder / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": files}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def shake(model: torch.nn.Module, seed: int = 0) -> Any:
    """Weights that make every part of a transformers model matter."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(1 + 0.2 * torch.randn_like(weight)) if weight.ndim == 1 else weight.normal_(0, 0.2)
        for path, buffer in model.named_buffers():
            if path.endswith("layer_scalar"):
                buffer.copy_(1 + 0.2 * torch.randn_like(buffer))
    return model.eval()


def theirs(model: torch.nn.Module, tokens: mx.array) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(np.array(tokens)).long()).logits.float().numpy()


def write_tokenizer(folder: Path, template: str | None = None, **settings) -> None:
    """Letters, marks and raw bytes."""
    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<turn>"]
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz.,"]
    vocabulary = {t: i for i, t in enumerate([*marks, *(f"<0x{b:02X}>" for b in range(256)), *letters])}
    pieces = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    pieces.normalizer = normalizers.Replace(" ", "\u2581")
    pieces.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces.add_special_tokens(marks)
    pieces.save(str(folder / "tokenizer.json"))
    pad = {"__type": "AddedToken", "content": "<pad>", "special": True}  # as older files say it
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": pad}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)


def refusal(spoil: Callable[[Path], object], named: Iterable[str], folder: Path) -> str:
    """What is said of a sound checkpoint once `spoil` is done with it; it names the folder and all of `named`."""
    write(folder)
    spoil(folder)
    with pytest.raises(ValueError) as error:
        agp.load(folder)
    for part in [str(folder), *named]:
        assert part in str(error.value)
    return str(error.value)
