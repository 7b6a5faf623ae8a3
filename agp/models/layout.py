"""The facts that both families state alike: how many blocks of which type, who borrows whose keys and values."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Self

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
        wrong, n = [], self.num_layers
        if stated != n:
            wrong.append(f"num_hidden_layers is {stated}, but layer_types names {n}")
        if odd := sorted(set(self.layer_types) - set(KINDS)):
            wrong.append(f"layer_types holds {odd}; known are {', '.join(KINDS)}")
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
            if name in POSITIVE and not (isinstance(value, int) and value > 0):
                wrong.append(f"{name} is {value!r}; a whole number above 0 is needed")
        if wrong:
            raise ValueError("config.json contradicts itself: " + "; ".join(wrong))

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


POSITIVE = (
    "hidden_size",
    "num_attention_heads",
    "sliding_window",
    "vocab_size",
    "vocab_size_per_layer_input",
    "max_position_embeddings",
)
