"""Ten steps of ours against ten of torch's AdamW on PEFT's adapters: the same weights, gradients clipped or not.

Seen to fail without bias correction.
"""

import mlx.core as mx
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import agp
from agp.adapter_files import load
from agp.adapters import attach
from agp.losses import next_token
from agp.recompute import recompute
from agp.train import FitConfig, fit
from export.ruler import measure
from tests.parity.compared import judge
from tests.parity.reference import array
from tests.parity.test_adapters import FAMILIES, pytestmark, theirs  # noqa: F401

ROWS = np.random.default_rng(5).integers(1, 96, (10, 3, 11))
CONFIG = {"steps": 10, "rate": 3e-3, "floor": 1.0, "weight_decay": 0.1}


def loss(model, tokens):
    hidden = model.blocks(model.embed(tokens), visit=recompute()).hidden[:, :-1].flatten(0, 1)
    return next_token(model, hidden, tokens[:, 1:].flatten(), mx.ones(hidden.shape[0]), chunk=9)


def judged(model, clip):
    """What torch makes of it, in float64."""
    own = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, CONFIG["rate"], weight_decay=CONFIG["weight_decay"])
    for rows in ROWS:
        tokens = torch.from_numpy(rows)
        optimizer.zero_grad()
        logits = model(tokens, use_cache=True).logits[:, :-1].flatten(0, 1)
        F.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(own, clip)
        optimizer.step()
    return dict(model.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize("clip", [0.5, 1e9])
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_steps_end_where_torchs_end(family, kind, clip, tmp_path):
    model = theirs(family, tmp_path / "base", kind)
    model.save_pretrained(tmp_path / "adapter")
    ours = agp.load(tmp_path / "base").model
    attach(ours, *load(tmp_path / "adapter")[:2])
    fit(ours, loss, lambda step, _: (mx.array(ROWS[step - 1]),), FitConfig(**CONFIG, clip=clip), tmp_path / "run")
    wanted, distances = judged(model.double(), clip), []
    for path, module in ((p, m) for p, m in ours.named_modules() if "lora_a" in m):
        at = f"base_model.model.model.{path}"
        pairs = {"lora_a": "lora_A.default.weight", "lora_b": "lora_B.default.weight"}
        pairs |= {"m": "lora_magnitude_vector.default.weight"} if kind == "dora" else {}
        for a, b in pairs.items():
            distances.append(measure(f"{path}.{a}", module[a], array(wanted[f"{at}.{b}"]).T))
    judge(distances)
