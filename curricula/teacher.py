"""The teacher: the base with its domain adapter, as the domain stage left it, checked to be the same."""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

import agp
from agp import adapter_files
from agp.adapters import adapted, attach
from agp.fingerprint import fingerprint
from agp.fuse import fuse
from agp.models.decoder import Decoder
from agp.models.load import Loaded
from curricula.runner import MANIFEST


def teacher(domain: Path) -> Loaded:
    if not (domain / "adapter").is_dir():
        raise ValueError(
            f"{domain} has no adapter: what is learned from the states of a base that does not speak the user's "
            "distribution is of no use. Train the domain stage first"
        )
    made = json.loads((domain / MANIFEST).read_text())
    asked, known = made["config"] | made["places"], made["metrics"]["weights"]
    loaded = agp.load(asked["model"], asked["revision"], made["metrics"]["dtype"], asked["quantize"], asked["table"])
    if loaded.tokenizer is None:
        raise ValueError(f"{asked['model']} has no tokenizer, and text cannot be read without one")
    if (found := fingerprint(loaded.model)) != known:
        raise ValueError(
            f"{asked['model']} holds other weights than its adapter was trained on: their digest is {found[:12]}, "
            f"and was {known[:12]}"
        )
    saved = adapter_files.load(domain / "adapter")
    attach(loaded.model, saved.adapter, saved.arrays)
    loaded.model.freeze()
    loaded.model.eval()
    return loaded


def folded(model: Decoder) -> None:
    """Its adapter made part of its weights, where nothing is lost to rounding: a quarter of the work is spared."""
    bases = [of.base for of in adapted(model).values()]
    if all(isinstance(base, nn.Linear) and base.weight.dtype == mx.float32 for base in bases):
        fuse(model)
