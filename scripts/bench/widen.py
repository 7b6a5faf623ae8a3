"""A small model made wide without changing what it says: its exits stay real, and only its cost grows.

Every width is multiplied and filled with zeros. A norm over `k` times as many numbers, most of them zeros, makes each
of the others sqrt(k) times as large, which its gain takes back. Numbers of a head keep their pairs and their
wavelengths: they stand `k` apart.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from agp.models import gemma4
from agp.models.decoder import Decoder
from heads import depth, glimpse, trajectory
from heads.bundle import Bundle


def widened(model: Decoder, k: int) -> gemma4.Model:
    """All its weights in float32; any adapter must be part of them."""
    config: Any = model.config
    wide = gemma4.Model(
        replace(
            config,
            hidden_size=k * config.hidden_size,
            head_dims=tuple(k * width for width in config.head_dims),
            widths=tuple(k * width for width in config.widths),
            hidden_size_per_layer_input=k * config.hidden_size_per_layer_input,
            rms_norm_eps=config.rms_norm_eps / k,
        )
    )
    wanted = dict(flat(wide))
    arrays = [(name, placed(name, a, wanted[name].shape, config, k)) for name, a in flat(model)]
    wide.load_weights(arrays, strict=True)
    wide.freeze()
    mx.eval(wide.parameters())
    return wide


def placed(name: str, a: mx.array, shape: Sequence[int], config: Any, k: int) -> mx.array:
    part = name.split(".")[-2] if name.endswith(".weight") else name.split(".")[-1]
    if part == "layer_scalar":
        return a
    head = config.head_dims[int(name.split(".")[1])] if ".self_attn." in name else 0
    told = config.hidden_size_per_layer_input
    axes = [np.arange(size) for size in a.shape]
    if head:
        turned = 1 if part == "o_proj" else 0
        axes[turned] = apart(a.shape[turned], head, k)
    if part in ("embed_tokens_per_layer", "per_layer_model_projection"):
        layers = 1 if part == "embed_tokens_per_layer" else 0
        axes[layers] = spaced(a.shape[layers], told, k)
    return put(a.astype(mx.float32) * factor(name, part, k), axes, shape)


def factor(name: str, part: str, k: int) -> float:
    if part == "per_layer_model_projection":
        return sqrt(k)  # it is divided by the root of the width, which grew
    smaller = part in ("embed_tokens", "embed_tokens_per_layer", "o_proj") or (part.endswith("norm") and name != LAST)
    return 1 / sqrt(k) if smaller else 1.0


LAST = "norm.weight"  # what it makes sqrt(k) times as large meets rows of the embedding that were made as much smaller


def spaced(size: int, each: int, k: int) -> np.ndarray:
    """Where the first numbers of every part go."""
    at = np.arange(size)
    return at // each * each * k + at % each


def apart(size: int, head: int, k: int) -> np.ndarray:
    at = np.arange(size)
    half = head // 2
    return at // half * half * k + at % half * k


def put(a: mx.array, axes: Sequence[np.ndarray], shape: Sequence[int]) -> mx.array:
    found = np.zeros(shape, np.float32)
    found[np.ix_(*axes)] = np.array(a)
    return mx.array(found)


def headed(heads: Bundle, wide: Decoder, k: int) -> Bundle:
    """Its heads as wide: those that exits hang on. Codecs and names stay as they are, and do not fit."""
    modules = [module(of, heads.decoder, wide, k) for of in heads.modules]
    return heads._replace(
        decoder=wide,
        plain=reader(heads.plain, k),
        late=reader(heads.late, k),
        glance=glance(heads.glance, k),
        modules=tuple(modules),
    )


def module(narrow: depth.Head, model: Decoder, wide: Decoder, k: int) -> depth.Head:
    kinds = model.config.layer_types
    blocks = tuple(kinds.index(kind, model.config.num_producers) for kind in narrow.attention)
    width = narrow.gate.weight.shape[0]
    found = depth.Head(depth.Config(taps=narrow.taps, blocks=blocks, width=k * width), wide)
    wanted, given = dict(flat(found)), flat(narrow)
    factors = {"asked": 1 / sqrt(k), "before_attention": 1 / sqrt(k), "before_mlp": 1 / sqrt(k), "down": sqrt(k)}
    arrays = []
    for name, a in given:
        parts = name.split(".")
        axes, times = [np.arange(size) for size in a.shape], factors.get(parts[0], 1.0)
        if parts[0] == "attention":
            head = narrow.attention[parts[1]].head_dim
            turned = 1 if parts[2] == "o_proj" else 0
            axes[turned] = apart(a.shape[turned], head, k)
            times = 1 / sqrt(k) if parts[2] == "q_norm" else 1.0
        arrays.append((name, put(a * times, axes, wanted[name].shape)))
    return filled(found, arrays)


def reader(narrow: trajectory.Head, k: int) -> trajectory.Head:
    config = narrow.config
    found = trajectory.Head(replace(config, width=k * config.width, dim=k * config.dim))
    wanted, given = dict(flat(found)), flat(narrow)
    arrays = []
    for name, a in given:
        times: Any = 1 / sqrt(k) if name in ("now", "before") else 1.0
        if name == "last":
            known = a.shape[1] - config.dim
            times = mx.where(mx.arange(a.shape[1]) < known, 1.0, 1 / sqrt(k))[:, None]
        arrays.append((name, put(a * times, [np.arange(size) for size in a.shape], wanted[name].shape)))
    return filled(found, arrays)


def glance(narrow: glimpse.Head, k: int) -> glimpse.Head:
    config = narrow.config
    found = glimpse.Head(replace(config, dim=k * config.dim))
    wide = [(0, 0), (0, (k - 1) * config.dim)]
    found.ids, found.rows = narrow.ids, mx.pad(narrow.rows, wide) / sqrt(k)
    found.rest = mx.pad(narrow.rest, wide[1]) / sqrt(k)
    return filled(found, [])


def flat(module: Any) -> Any:
    return tree_flatten(module.parameters())


def filled(head: Any, arrays: list[tuple[str, mx.array]]) -> Any:
    head.update(tree_unflatten(arrays))
    head.freeze()
    head.eval()
    mx.eval(head.parameters())
    return head
