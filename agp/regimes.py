"""Smaller models inside a Gemma 3n, run on the same weights: narrower MLPs, dropped blocks, other sharing or sparsity.

`nested(model, regime)` is a view, not a copy: it holds the model's own modules, so to update one is to update both.
A view and its model take each other's cache, so they can be switched between two tokens.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from agp.models import gemma3n
from agp.models.decoder import Decoder
from agp.models.gemma3n import Config
from agp.models.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Regime:
    """What is changed; None leaves the model as it is. `widths` are those of the blocks that stay."""

    widths: tuple[int, ...] | None = None
    drop: tuple[int, ...] = ()
    sparsity: float | None = None  # of every block
    num_kv_shared_layers: int | None = None
    altup_correct_scale: bool | None = None

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        if not isinstance(given, Mapping) or given.keys() - cls.__dataclass_fields__.keys():
            raise ValueError(f"a regime says any of {', '.join(cls.__dataclass_fields__)}; got {given}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return cls(**values)

    def kept(self, config: Config) -> list[int]:
        return [i for i in range(config.num_layers) if i not in self.drop]

    def config(self, whole: Config) -> Config:
        """The config of the nested model; everything that does not fit `whole` is one error."""
        if faults := self.faults():
            raise ValueError("; ".join(faults))
        kept, wrong = self.kept(whole), []
        widths = self.widths or tuple(whole.widths[i] for i in kept)
        if outside := [i for i in self.drop if not whole.num_producers <= i < whole.num_layers]:
            wrong.append(
                f"blocks {outside} cannot be dropped: only {whole.num_producers}..{whole.num_layers - 1} can, "
                "the ones that make no keys and values"
            )
        if len(widths) != len(kept):
            wrong.append(f"{len(widths)} widths for {len(kept)} blocks")
        elif wide := [i for i, w in zip(kept, widths, strict=True) if not 0 < w <= whole.widths[i]]:
            wrong.append(f"blocks {wide} are asked to be wider than they are (or to have no width)")
        shared = self._shared(whole, kept)
        made = [i for i in kept[: len(kept) - shared] if i >= whole.num_producers]
        if made and not whole.spare_kv:
            wrong.append(
                f"blocks {made[0]}..{made[-1]} would need keys and values of their own, which this model was loaded "
                "without; load with spare_kv=True, if the checkpoint has them"
            )
        if wrong:
            raise ValueError("the regime does not fit this model: " + "; ".join(wrong))
        scale = whole.altup_correct_scale if self.altup_correct_scale is None else self.altup_correct_scale
        nested = replace(
            whole,
            layer_types=tuple(whole.layer_types[i] for i in kept),
            widths=widths,
            sparsity=tuple(whole.sparsity[i] if self.sparsity is None else self.sparsity for i in kept),
            num_kv_shared_layers=shared,
            altup_correct_scale=scale,
        )
        nested.check(len(kept))
        return nested

    def faults(self) -> list[str]:
        """What no model could make sense of."""
        wrong = []
        for name, value in (("widths", self.widths or ()), ("drop", self.drop)):
            if not isinstance(value, tuple) or any(type(v) is not int for v in value):
                wrong.append(f"{name} are whole numbers in a tuple; got {value!r}")
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            wrong.append(f"sparsity is a share from 0 to below 1; got {self.sparsity!r}")
        if self.num_kv_shared_layers is not None and type(self.num_kv_shared_layers) is not int:
            wrong.append(f"num_kv_shared_layers is a whole number; got {self.num_kv_shared_layers!r}")
        return wrong

    def _shared(self, whole: Config, kept: list[int]) -> int:
        if self.num_kv_shared_layers is not None:
            return self.num_kv_shared_layers
        return sum(i >= whole.num_producers for i in kept)


class Narrow(nn.Module):
    """The first `width` outputs, or inputs, of a linear layer that stays where it is."""

    def __init__(self, linear: nn.Module, width: int, *, inputs: bool):
        super().__init__()
        if inputs and isinstance(linear, nn.QuantizedLinear) and width % linear.group_size:
            raise ValueError(f"a width of {width} cuts through a quantization group of {linear.group_size}")
        self.linear, self.width, self.inputs = linear, width, inputs

    def __call__(self, x: mx.array) -> mx.array:
        linear: Any = self.linear
        if isinstance(linear, nn.Linear | nn.QuantizedLinear):
            return self.cut()(x)
        if not self.inputs:  # an adapter, say: right for anything linear, though it saves nothing
            return linear(x)[..., : self.width]
        missing = linear_inputs(linear) - self.width
        return linear(mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]))

    def cut(self) -> Any:
        """A layer of the same kind over slices of the same arrays."""
        layer: Any = copy.copy(self.linear)
        if not self.inputs:
            for name in layer.keys() & {"weight", "scales", "biases", "bias"}:
                layer[name] = layer[name][: self.width]
        elif isinstance(layer, nn.QuantizedLinear):  # a word holds 32 / bits inputs, a scale stands for a group of them
            groups = self.width // layer.group_size
            layer["weight"] = layer["weight"][:, : self.width * layer.bits // 32]
            layer["scales"], layer["biases"] = layer["scales"][:, :groups], layer["biases"][:, :groups]
        else:
            layer["weight"] = layer["weight"][:, : self.width]
        return layer


def linear_inputs(linear: nn.Module) -> int:
    """How many inputs an adapted linear takes: those of the layer it wraps."""
    inner = next(m for _, m in linear.named_modules() if isinstance(m, nn.Linear | nn.QuantizedLinear))
    return inner.scales.shape[1] * inner.group_size if isinstance(inner, nn.QuantizedLinear) else inner.weight.shape[1]


class Nested(gemma3n.Model):
    """Made by `nested`. Its blocks are numbered anew; `kept` says which they are in the whole model."""

    def __init__(self, whole: gemma3n.Model, regime: Regime, name: str):
        nn.Module.__init__(self)  # the whole model's parts are used; none are made
        self.name = name
        self.config = regime.config(whole.config)
        self.identity, self.kept = whole.identity, tuple(regime.kept(whole.config))
        object.__setattr__(self, "whole", whole)  # not a part of this module: its parameters are here already
        for name in whole.keys() - {"layers", "kept"}:
            self[name] = whole[name]
        self.layers = [narrowed(whole.layers[i], j, self.config) for j, i in enumerate(self.kept)]

    def per_layer_inputs(self, rows: mx.array | None, vectors: mx.array) -> mx.array:
        inputs = self.whole.per_layer_inputs(rows, vectors)
        return inputs if inputs.shape[2] == len(self.kept) else inputs[:, :, mx.array(self.kept)]


def nested(model: Decoder, regime: Regime, name: str = "nested") -> Nested:
    if not isinstance(model, gemma3n.Model):
        raise ValueError(f"regimes live in Gemma 3n models; this is a {type(model).__module__.split('.')[-1]}")
    if isinstance(model, Nested):
        raise ValueError("this is a nested model already; nest in the whole one, which is its `whole`")
    return Nested(model, regime, name)


def narrowed(block: gemma3n.Block, layer: int, config: Config) -> gemma3n.Block:
    """The block itself with other settings around its own modules."""
    block, attn = copy.copy(block), copy.copy(block.self_attn)
    mlp: Any = copy.copy(block.mlp)
    block.layer, block.correct_scale = layer, config.altup_correct_scale
    width = config.widths[layer]
    if width < mlp.width:
        mlp.gate_proj = Narrow(mlp.gate_proj, width, inputs=False)
        mlp.up_proj = Narrow(mlp.up_proj, width, inputs=False)
        mlp.down_proj = Narrow(mlp.down_proj, width, inputs=True)
    mlp.width, mlp.sparsity = width, config.sparsity[layer]
    attn.owns = layer < config.num_producers
    block.mlp, block.self_attn = mlp, attn
    return block


def e4b(*wide: int | range, drop: Iterable[int] = ()) -> Regime:
    """A point of Google's published ladder for E4B: blocks named wide have 16384, the others 8192."""
    full = {i for w in wide for i in ((w,) if isinstance(w, int) else w)}
    drop = tuple(drop)
    kept = [i for i in range(35) if i not in drop]
    return Regime(widths=tuple(2048 * (8 if i in full else 4) for i in kept), drop=drop)


E4B_LADDER = {  # the data set google/gemma3n-slicing-configs; its names carry billions of effective parameters
    "e4b": e4b(range(35)),
    "e2b": e4b(drop=range(20, 25)),
    "e1.96b": e4b(4, drop=range(20, 25)),
    "e2.54b": e4b(4, range(20, 25)),
    "e2.69b": e4b(4, 9, 14, range(19, 25)),
    "e2.98b": e4b(range(15, 25), range(30, 35)),
    "e3.18b": e4b(4, range(9, 25), 29, 34),
    "e3.39b": e4b(4, range(9, 30), 34),
    "e3.59b": e4b(range(4, 30), 34),
    "e3.79b": e4b(range(4, 35)),
    "e2.49b-block": e4b(range(20, 25)),
    "e2.73b-block": e4b(range(15, 25)),
    "e2.98b-block": e4b(range(10, 25)),
    "e3.24b-block": e4b(range(10, 30)),
    "e3.49b-block": e4b(range(5, 30)),
    "e3.79b-block": e4b(range(5, 35)),
}


def switches(config: Config) -> dict[str, Regime]:
    """Runtime switches instead of nesting: no trained model lies behind `low`, `intermediate` or `full`.

    On E4B these share 20, 10 and 0 blocks; elsewhere one attention pattern more than native, one less, and none.
    """
    kinds = config.layer_types
    period = kinds.index("full_attention") + 1 if "full_attention" in kinds else 1
    native = config.num_kv_shared_layers
    more, less = min(native + period, config.num_layers - period), max(native - period, 0)
    return {
        "low": Regime(sparsity=0.95, num_kv_shared_layers=max(more, native), altup_correct_scale=False),
        "intermediate": Regime(sparsity=0.5, num_kv_shared_layers=less, altup_correct_scale=False),
        "full": Regime(sparsity=0.0, num_kv_shared_layers=0, altup_correct_scale=True),
        "native": Regime(),
    }


def named(config: Layout, folder: str | Path | None = None) -> dict[str, Regime]:
    """Every regime known by name for this model: switches, the published ladder where it fits, regimes.json."""
    if not isinstance(config, Config):
        raise ValueError("regimes live in Gemma 3n models; this is another family's config")
    known = switches(config)
    if config.num_layers == 35 and set(config.widths) == {16_384}:
        known |= E4B_LADDER
    path = None if folder is None else Path(folder) / "regimes.json"
    if path is not None and path.exists():
        known |= read(path)
    return known


def read(path: Path) -> dict[str, Regime]:
    """Regimes by name, from a file such as the one beside a model's weights."""
    try:
        given = json.loads(path.read_text())
        return {name: Regime.from_dict(regime) for name, regime in given.items()}
    except (ValueError, AttributeError) as e:
        raise ValueError(f"{path} does not hold regimes by name: {e}") from e
