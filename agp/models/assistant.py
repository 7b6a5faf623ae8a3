"""Google's drafter for Gemma 4: a few blocks that make no keys or values and read those of the model they draft for.

A step is given the newest token, as the target embeds it, and the normed state that the target chose it from. It says
what comes next, and a state that stands in for the target's in the next step. All drafts of a round are made in the
same place: that of the newest token, whose own key is not there yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from agp.cache import KV, Cache
from agp.fused import RMSNorm
from agp.layers import Place
from agp.models import gemma4
from agp.models.decoder import Run
from agp.models.files import read_json
from agp.models.fill import fill
from agp.models.folder import build, find
from agp.models.layout import Layout, whole
from agp.models.load import DTYPES, report
from agp.models.packed import stated
from agp.models.tensors import Tensor, shown, some
from agp.models.weights import compare, ours, surveyed
from agp.products import Embedding, Linear
from agp.sites import plain

TYPES = {"gemma4_assistant": 1536, "gemma4_unified_assistant": 3840}  # the width that transformers leaves out
SIZES = {"num_centroids": 2048, "centroid_intermediate_top_k": 32}
NOTHING = ("hidden_size_per_layer_input", "vocab_size_per_layer_input", "use_double_wide_mlp")
WIDEST = 2**20
ORDER = "masked_embedding.token_ordering"
WHOLE_NUMBERS = ("I64", "I32", "U32")


class Said(NamedTuple):
    """Of the tokens that were scored; all others are ruled out."""

    ids: mx.array  # B 1 n
    logits: mx.array  # B 1 n

    @property
    def likeliest(self) -> mx.array:
        """B 1."""
        return mx.take_along_axis(self.ids, mx.argmax(self.logits, axis=-1, keepdims=True), axis=-1)[..., 0]


@dataclass(frozen=True, kw_only=True)
class Config(gemma4.Config):
    """A Gemma 4 without a producer, and what joins it to its target."""

    backbone_hidden_size: int
    use_ordered_embeddings: bool
    num_centroids: int
    centroid_intermediate_top_k: int

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        kind, text = given.get("model_type"), given.get("text_config")
        if not isinstance(kind, str) or kind not in TYPES:
            raise ValueError(f"config.json: model_type is {shown(kind)}; an assistant's is {' or '.join(TYPES)}")
        if not isinstance(text, dict):
            raise ValueError(f"config.json: text_config is a {type(text).__name__} where an object was due")
        own: dict[str, Any] = {"use_ordered_embeddings": False, "backbone_hidden_size": TYPES[kind]} | SIZES
        own |= {name: given[name] for name in own if given.get(name) is not None}
        tied = {"tie_word_embeddings": given.get("tie_word_embeddings", True)}
        told = {name: value for name, value in text.items() if name not in NOTHING}
        # checked as if each block made its own: that none does is what a Gemma 4 cannot be
        base = build(told | tied | {"model_type": "gemma4_text", "num_kv_shared_layers": 0, NOTHING[0]: 0}).config
        config = cls(**{f.name: getattr(base, f.name) for f in fields(base)} | own)
        wrong = [f"{name} is {shown(text[name])}; an assistant has none" for name in NOTHING if text.get(name)]
        if text.get("model_type", inner := kind.replace("assistant", "text")) != inner:
            wrong.append(f"model_type is {kind}, but text_config says {shown(text['model_type'])}")
        if (sharing := text.get("num_kv_shared_layers")) not in (None, 0, config.num_layers):
            wrong.append(f"num_kv_shared_layers is {shown(sharing)} of {config.num_layers} blocks; here all share")
        if wrong := wrong + config.faults():
            raise ValueError("config.json: " + "; ".join(wrong))
        return config

    def faults(self) -> list[str]:
        sizes = {name: getattr(self, name) for name in ("backbone_hidden_size", *SIZES)}
        needed = f"a whole number from 1 to {WIDEST} is needed"
        wrong = [f"{name} is {shown(v)}; {needed}" for name, v in sizes.items() if not whole(v) or v > WIDEST]
        if type(self.use_ordered_embeddings) is not bool:
            wrong.append(f"use_ordered_embeddings is {shown(self.use_ordered_embeddings)}; true or false is needed")
        if not self.tie_word_embeddings:
            wrong.append("tie_word_embeddings is false; an assistant's head is its embedding")
        if wrong or not self.use_ordered_embeddings:
            return wrong
        groups, taken = self.num_centroids, self.centroid_intermediate_top_k
        if self.vocab_size % groups:
            wrong.append(f"num_centroids is {groups}, which does not divide a vocabulary of {self.vocab_size}")
        if taken > groups:
            wrong.append(f"centroid_intermediate_top_k is {taken} of {groups} centroids")
        return wrong

    @property
    def num_producers(self) -> int:
        return 0

    def window(self, layer: int) -> int | None:
        """As transformers counts it: so many keys and one more, the newest of them one before the token that asks."""
        window = super().window(layer)
        return None if window is None else window + 1


class Centroids(nn.Module):
    """Which tokens are worth a score: those of the groups whose centroids are nearest."""

    def __init__(self, config: Config):
        super().__init__()
        self.taken = config.centroid_intermediate_top_k
        self.centroids = Linear(config.hidden_size, config.num_centroids, bias=False)
        self.token_ordering = mx.arange(config.vocab_size, dtype=mx.uint32)  # group after group
        self.freeze(recurse=False, keys=["token_ordering"])

    def __call__(self, x: mx.array) -> mx.array:
        scores = self.centroids(x)
        nearest = mx.argpartition(-scores, kth=self.taken - 1, axis=-1)[..., : self.taken]
        return self.token_ordering.reshape(scores.shape[-1], -1)[nearest].flatten(-2)


class Assistant(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        dim, backbone = config.hidden_size, config.backbone_hidden_size
        self.pre_projection = Linear(2 * backbone, dim, bias=False)
        self.layers = [gemma4.Block(config, i) for i in range(config.num_layers)]
        self.norm = RMSNorm(dim, config.rms_norm_eps)
        self.post_projection = Linear(dim, backbone, bias=False)
        self.embed_tokens = Embedding(config.vocab_size, dim)
        if config.use_ordered_embeddings:
            self.masked_embedding = Centroids(config)

    def step(self, vector: mx.array, state: mx.array, place: Place, shared: Mapping[str, KV]) -> tuple[Said, mx.array]:
        """What comes after the token of `vector`, and the state for the step after; both in are B 1 D of the target."""
        x = self.pre_projection(mx.concatenate([vector, state], axis=-1))
        for block, kind in zip(self.layers, self.config.layer_types, strict=True):
            x = block(x, Run(place, inputs=None, borrowed=shared[kind], cache=None, visit=plain, last=None))
        x = self.norm(x)
        return self.say(x), self.post_projection(x)

    def say(self, normed: mx.array) -> Said:
        if self.config.use_ordered_embeddings:
            ids = self.masked_embedding(normed)
            return Said(ids, (self.embed_tokens(ids) @ normed[..., None]).squeeze(-1))
        logits = self.embed_tokens.as_linear(normed)
        return Said(mx.broadcast_to(mx.arange(logits.shape[-1]), logits.shape), logits)


def lenders(target: Layout) -> dict[str, int]:
    """By layer type, the last block that makes keys and values."""
    return {kind: i for i, kind in enumerate(target.layer_types[: target.num_producers])}


class Ahead(Place):
    """Of rows that do not stand in step: where each goes on, after all that `where` tells of."""

    def start_of(self, length: int) -> mx.array:
        assert self.where is not None and length == 1, "one token comes next"
        return (self.where >= 0).sum(axis=1, keepdims=True)

    def _scattered(self, where: mx.array, queries: int, keys: int, window: int | None) -> mx.array:
        seen = where[:, -keys:] >= 0
        if window is not None:
            seen = seen & (where[:, -keys:] >= self.start_of(queries) - window)
        return (seen | ~seen.any(axis=1, keepdims=True))[:, None, None]  # an empty row is NaN on some devices


def newest(cache: Cache, target: Layout, where: mx.array | None = None) -> tuple[Place, dict[str, KV]]:
    """Where the token stands that comes after all that `cache` holds, and the keys and values that it may read.

    Of rows that do not stand in step `where` says which token is at each place, B S; below zero: none.
    """
    # its own key is missing, so all keys lie one nearer than a mask takes them to, and padding seems one longer
    place = Place(cache.position + 1, None if cache.pad is None else cache.pad + 1)
    place = place if where is None else Ahead(cache.position + 1, None, where=where)
    return place, {kind: cache.layers[i].held() for kind, i in lenders(target).items()}


def misfits(config: Config, target: gemma4.Config) -> list[str]:
    """Where an assistant and the model it is to draft for disagree."""
    pairs = {"backbone_hidden_size": (config.backbone_hidden_size, target.hidden_size)}
    pairs |= {"vocab_size": (config.vocab_size, target.vocab_size)}
    wrong, made = [], lenders(target)
    for i, kind in enumerate(config.layer_types):
        if kind not in made:
            wrong.append(f"block {i} reads {kind} keys, of which the target makes none")
            continue
        pairs[f"head_dim of block {i} ({kind})"] = (config.head_dims[i], target.head_dims[made[kind]])
        pairs[f"num_key_value_heads of block {i} ({kind})"] = (config.kv_heads[i], target.kv_heads[made[kind]])
    return wrong + [f"{what} is {a}, the target has {b}" for what, (a, b) in pairs.items() if a != b]


def load_assistant(
    path_or_hub_id: str | Path, target: Layout, dtype: str | None = None, revision: str | None = None
) -> Assistant:
    """Open an assistant for a model of config `target`; weights are of the type stored, or of `dtype`."""
    if dtype is not None and dtype not in tuple(DTYPES):
        raise ValueError(f"dtype is {dtype!r}; one of {', '.join(DTYPES)} is needed")
    if not isinstance(target, gemma4.Config):
        raise ValueError(f"assistants draft for Gemma 4; this target is a {type(target).__module__.split('.')[-1]}")
    folder = find(path_or_hub_id, revision)
    model, tensors, wrong = examine(folder, target)
    if wrong:
        raise ValueError(report(folder, wrong))
    try:
        bad = fill(model, tensors, {}, None if dtype is None else DTYPES[dtype])
    except ValueError as e:
        raise ValueError(report(folder, [str(e)])) from e
    wrong = [f"NaN or infinity in: {some(bad)}"] if bad else []
    if ORDER in tensors:
        order, ids = np.array(model.masked_embedding.token_ordering), np.arange(target.vocab_size)
        if lost := np.setdiff1d(ids, order).size:
            wrong.append(f"{ORDER} is no order of all {ids.size} tokens: {lost} are not in it")
        model.masked_embedding.token_ordering = mx.array(order.astype(np.uint32))
    if wrong:
        raise ValueError(report(folder, wrong))
    return model


def examine(folder: Path, target: gemma4.Config) -> tuple[Any, dict[str, Tensor], list[str]]:
    """The model, not yet filled, what is to fill it, and everything wrong with either."""
    model: Any = None
    tensors, wrong = [], []
    try:
        given = read_json(folder / "config.json")
        said, wrong = stated(given)
        wrong += ["config.json: the weights are quantized; an assistant is opened as it was trained"] if said else []
        model = Assistant(Config.from_dict(given))
        wrong += misfits(model.config, target)
    except ValueError as e:
        wrong.append(str(e))
    tensors, faults = surveyed(folder)
    wrong += faults
    if model is None or not tensors:
        return model, {}, wrong
    kept, faults = ours(tensors, model.config)
    if (order := kept.get(ORDER)) is not None:
        if order.dtype not in WHOLE_NUMBERS:
            wrong.append(f"{ORDER} is {order.dtype}; {', '.join(WHOLE_NUMBERS)} are read")
        kept[ORDER] = replace(order, dtype="U32")  # as the model holds it; converted once read
    return model, kept, wrong + faults + compare(model, kept)
