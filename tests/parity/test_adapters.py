"""Adapters against PEFT and mlx-lm: they read ours and we read theirs, with equal logits and gradients.

Seen to fail: padding on the wrong side, a fold of scales left out, alpha without the rank, a length with a gradient.
"""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F

import agp
from agp.adapter_files import load, save, save_peft
from agp.adapters import Adapter, Part, adapted, attach, detach
from agp.targets import design
from export.ruler import measure
from tests.parity.compared import judge
from tests.parity.reference import array, build
from tests.test_adapters import KINDS, stir
from tests.toys import config_dict, text, toy

FAMILIES = ("gemma4", "gemma3n")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks
TOKENS = np.random.default_rng(0).integers(1, 96, (2, 19))


def theirs(family: str, folder: Path, kind: str, **how) -> PeftModel:
    base = build(family, "shares some")
    base.save_pretrained(folder)
    targets = ["q_proj", "v_proj", "down_proj", "per_layer_input_gate"]
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_dora=kind == "dora",
        use_rslora=kind == "rslora",
        target_modules=targets,
        rank_pattern={"layers.1.mlp.down_proj": 2},
        alpha_pattern={"layers.2.mlp.down_proj": 3},
        **how,
    )
    model = get_peft_model(base, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.05)
            if "magnitude" in name:
                p.mul_(1 + 0.05 * torch.randn_like(p))
    return model.float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_we_read_pefts_with_their_logits_and_gradients(family, kind, tmp_path):
    model = theirs(family, tmp_path / "base", kind)
    model.save_pretrained(tmp_path / "adapter")
    model = model.double()
    ours = agp.load(tmp_path / "base").model
    saved = load(tmp_path / "adapter")
    attach(ours, saved.adapter, saved.arrays)
    tokens, targets = torch.from_numpy(TOKENS), torch.from_numpy(TOKENS[:, 1:]).flatten()
    expected = model(tokens, use_cache=True).logits
    loss = F.cross_entropy(expected[:, :-1].flatten(0, 1), targets)
    loss.backward()

    def ours_loss(model):
        logits = model(TOKENS).logits
        return nn.losses.cross_entropy(logits[:, :-1], mx.array(TOKENS[:, 1:])).mean()

    value, grads = nn.value_and_grad(ours, ours_loss)(ours)
    distances = [measure("logits", ours(TOKENS).logits, array(expected)), measure("loss", value, array(loss))]
    grads, named = dict(tree_flatten(grads)), dict(model.named_parameters())
    for path in adapted(ours):
        at = f"base_model.model.model.{path}"
        pairs = {"lora_a": "lora_A.default.weight", "lora_b": "lora_B.default.weight"}
        pairs |= {"m": "lora_magnitude_vector.default.weight"} if kind == "dora" else {}
        distances += [
            measure(f"{path}.{a}", grads.pop(f"{path}.{a}"), array(named[f"{at}.{b}"].grad).T) for a, b in pairs.items()
        ]
    assert not grads
    judge(distances)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_reads_ours_with_our_logits(family, kind, tmp_path):
    base = build(family, "shares some")
    base.save_pretrained(tmp_path / "base")
    ours = agp.load(tmp_path / "base").model
    adapter = design(ours, "all", rank=3, kind=kind)
    parts = adapter.parts | {"layers.1.mlp.up_proj": Part(2, 0.7)}
    attach(ours, Adapter(parts=parts, dora=adapter.dora))
    stir(ours)
    expected = ours(TOKENS).logits
    adapter, arrays = detach(ours)
    save_peft(tmp_path / "adapter", f"{family}_text", adapter, arrays)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").double()
    with torch.no_grad():
        judge([measure("logits", expected, array(model(torch.from_numpy(TOKENS), use_cache=True).logits))])
    attach(ours, *load(tmp_path / "adapter")[:2])
    judge([measure("read back", ours(TOKENS).logits, expected)])


def checkpoint(family: str, folder: Path):
    """Our toy in a folder that mlx-lm opens as well."""
    ours = toy(family, **({"spare_kv": True} if family == "gemma3n" else {}))
    before = {"gemma4": "model.", "gemma3n": "model.language_model."}[family]
    weights = {before + name: a for name, a in tree_flatten(ours.parameters())}
    own = config_dict(family, "shares some")
    config = (
        {"model_type": "gemma4_text", **own} if family == "gemma4" else {"model_type": "gemma3n", "text_config": own}
    )
    if family == "gemma3n":
        own |= {"model_type": "gemma3n_text", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
        own |= {"query_pre_attn_scalar": 8, "altup_coef_clip": 120.0, "altup_correct_scale": True, "rope_scaling": None}
        own |= {"altup_num_inputs": 4, "altup_active_idx": 0, "laurel_rank": 8, "intermediate_size": [48] * 6}
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return ours, config["model_type"]


def mlx_lm_logits(model):
    """With a cache: without one its Gemma 3n is another network."""
    return model(text(), cache=model.make_cache())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_mlx_lm_reads_ours_with_our_logits(family, kind, tmp_path):
    ours, model_type = checkpoint(family, tmp_path / "base")
    adapter = design(ours, "attention", rank=3, kind=kind)
    parts = adapter.parts | {"layers.1.mlp.up_proj": Part(2, 0.7)}
    attach(ours, Adapter(parts=parts, dora=adapter.dora))
    stir(ours)
    expected = ours(text()).logits
    save(tmp_path / "adapter", model_type, *detach(ours))
    model, _ = load_model(tmp_path / "base")
    judge([measure("base", mlx_lm_logits(model), ours(text()).logits)])
    load_adapters(model, str(tmp_path / "adapter"))
    judge([measure("logits", mlx_lm_logits(model), expected)])
    saved = load(tmp_path / "adapter")
    assert {path: part.rank for path, part in saved.adapter.parts.items()} == {
        p: part.rank for p, part in parts.items()
    }
    attach(ours, *saved[:2])
    judge([measure("read back", ours(text()).logits, expected)])


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_we_read_mlx_lms_with_their_logits(family, dora, tmp_path):
    ours, _ = checkpoint(family, tmp_path / "base")
    model, _ = load_model(tmp_path / "base")
    how = {"rank": 4, "scale": 5.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.down_proj"]}
    model.freeze()
    linear_to_lora_layers(model, 3, how, use_dora=dora)
    for _, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape)
    folder = tmp_path / "adapter"
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    config = {"fine_tune_type": "dora" if dora else "lora", "num_layers": 3, "lora_parameters": how, "seed": 0}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    attach(ours, *load(folder)[:2])
    assert len(adapted(ours)) == 6
    judge([measure("logits", ours(text()).logits, mlx_lm_logits(model))])
