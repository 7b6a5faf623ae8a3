"""The facts that both families state alike: how many blocks of which type, who borrows whose keys and values."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Self

from agp.models.tensors import shown

KINDS = ("sliding_attention", "full_attention")


@dataclass(frozen=True, kw_only=True)
class Layout:
    hidden_size: int
    num_attention_heads: int
    layer_types: tuple[str, ...]
    num_kv_shared_layers: int = 0
    sliding_window: int = 512
    vocab_size: int = 262_144
    vocab_size_per_layer_input: int = 262_144
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float | None = None
    tie_word_embeddings: bool = True
    rope: Mapping[str, dict] = field(default_factory=dict)

    @classmethod
    def read(cls, given: Mapping[str, Any], **resolved: Any) -> Self:
        """Take what this config knows from config.json; all that contradicts is one error."""
        config = cls(**{f.name: given[f.name] for f in fields(cls) if f.name in given} | resolved)
        config.check(given["num_hidden_layers"])
        return config

    def check(self, stated: int) -> None:
        wrong, n = self.faults(), self.num_layers
        if stated != n:
            wrong.append(f"num_hidden_layers is {stated}, but layer_types names {n}")
        if odd := sorted(set(self.layer_types) - set(KINDS)):
            wrong.append(f"layer_types holds {shown(odd)}; known are {', '.join(KINDS)}")
        if not 0 <= self.num_kv_shared_layers < n:
            wrong.append(
                f"num_kv_shared_layers is {self.num_kv_shared_layers} of {n} blocks; one at least must own its own"
            )
        elif lacking := set(self.layer_types[self.num_producers :]) - set(self.layer_types[: self.num_producers]):
            wrong.append(
                f"blocks from {self.num_producers} on borrow {sorted(lacking)} keys and values that none makes"
            )
        for name, value in vars(self).items():
            if isinstance(value, tuple) and len(value) != n:
                wrong.append(f"{name} has {len(value)} entries for {n} blocks")
            if name in POSITIVE and not whole(value):
                wrong.append(f"{name} is {shown(value)}; a whole number above 0 is needed")
            if name in EACH_POSITIVE and not all(map(whole, value)):
                wrong.append(f"{name} holds {shown(value)}; whole numbers above 0 are needed")
        if wrong:
            raise ValueError("config.json contradicts itself: " + "; ".join(wrong))

    def faults(self) -> list[str]:
        """What a family checks besides."""
        return []

    @property
    def num_layers(self) -> int:
        return len(self.layer_types)

    @property
    def num_producers(self) -> int:
        """Blocks that make keys and values; leaving anywhere after them leaves no hole in a cache."""
        return self.num_layers - self.num_kv_shared_layers

    @cached_property
    def sources(self) -> tuple[int, ...]:
        """For each block the one whose keys and values it attends to."""
        newest, out = {}, []
        for i, kind in enumerate(self.layer_types):
            if i < self.num_producers:
                newest[kind] = i
            out.append(newest[kind])
        return tuple(out)

    @cached_property
    def lenders(self) -> frozenset[int]:
        return frozenset(self.sources[self.num_producers :])

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None


def whole(value: object) -> bool:
    return type(value) is int and value > 0


def positive(value: object) -> bool:
    """A number, no boolean, that float32 and products of two such can hold."""
    return type(value) in (int, float) and 1e-18 < value < 1e18  # pyright: ignore[reportOperatorIssue]


def ropes(given: object, known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By layer type, what config.json says over what is `known`; a key that is no layer type would have no effect."""
    if not isinstance(given, Mapping):
        raise ValueError(f"rope_parameters holds {shown(given)}; an object by layer type is needed")
    if stray := sorted(k for k, how in given.items() if k not in known or not isinstance(how, Mapping)):
        raise ValueError(f"rope_parameters holds {shown(stray)}; an object for each of {', '.join(known)} is needed")
    return {kind: {**how, **typed(given.get(kind, {}))} for kind, how in known.items()}


def typed(how: Mapping[str, Any]) -> dict[str, Any]:
    """Older files say `type` for `rope_type`."""
    return {"rope_type" if k == "type" and "rope_type" not in how else k: v for k, v in how.items()}


EACH_POSITIVE = ("head_dims", "kv_heads", "widths")
POSITIVE = (
    "hidden_size",
    "num_attention_heads",
    "sliding_window",
    "vocab_size",
    "vocab_size_per_layer_input",
    "max_position_embeddings",
    "num_key_value_heads",
    "head_dim",
    "altup_num_inputs",
    "laurel_rank",
)
