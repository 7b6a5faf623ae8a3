"""Which linears an adapter goes on: sets with a name, the last blocks, or a file of paths."""

from pathlib import Path

from agp.adapters import Adapter, Part, linears, shape, useless
from agp.models.decoder import Decoder
from agp.models.files import read_json
from agp.models.tensors import shown, some

SETS = {
    "all": ("",),
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    "mlp": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "o_proj": ("self_attn.o_proj",),
}
SHAPE = 'a JSON file of ranks by path, {"layers.0.mlp.up_proj": 4, "layers.1.mlp.up_proj": null} (null: as `rank` says)'
SCALES = {  # by what alpha is divided, given a rank
    "lora": lambda rank: rank,
    "dora": lambda rank: rank,
    "rslora": lambda rank: rank**0.5,
}


def design(
    model: Decoder,
    targets: str = "all",
    *,
    last: int | None = None,
    rank: int = 8,
    alpha: float = 16.0,
    kind: str = "lora",
    dropout: float = 0.0,
) -> Adapter:
    """An adapter for `model`: a set of `SETS`, or a JSON file of ranks by path, in the last blocks."""
    if kind not in SCALES:
        raise ValueError(f"kind is {shown(kind)}; one of {', '.join(SCALES)} is needed")
    ranks = named(model, targets, rank) if targets in SETS else listed(Path(targets), rank)
    count = model.config.num_layers
    if last is not None and not 0 < last <= count:
        raise ValueError(f"last is {last}; this model has {count} blocks")
    ranks = {path: r for path, r in ranks.items() if last is None or block_of(path, count) >= count - last}
    if not ranks:
        raise ValueError(f"{targets} has nothing in the last {last} of {count} blocks")
    parts = {path: Part(r, alpha / SCALES[kind](r)) for path, r in ranks.items()}
    return Adapter(parts=parts, dora=kind == "dora", dropout=dropout)


def block_of(path: str, count: int) -> int:
    """The block a linear belongs to; -1 is before the first, `count` after the last."""
    parts = path.split(".")
    return int(parts[1]) if parts[0] == "layers" else count if "unembed" in parts[0] or parts[0] == "lm_head" else -1


def named(model: Decoder, name: str, rank: int) -> dict[str, int]:
    """In the blocks alone, and only where an adapter has an effect; tiny linears have no more rank than they can."""
    endings = SETS[name]
    return {
        path: min(rank, *shape(linear))
        for path, linear in linears(model).items()
        if path.startswith("layers.") and path.endswith(endings) and useless(model, path) is None
    }


def listed(path: Path, rank: int) -> dict[str, int]:
    """From a file such as `{"layers.0.mlp.up_proj": 4, "layers.1.mlp.up_proj": null}`: null is the rank given."""
    if not path.is_file():
        raise ValueError(f"targets are {str(path)!r}; one of {', '.join(SETS)}, or {SHAPE}, is needed")
    try:
        given = read_json(path)
    except ValueError as e:
        raise ValueError(f"{e}; {SHAPE} is needed") from e
    if wrong := [name for name, r in given.items() if r is not None and type(r) is not int]:
        raise ValueError(f"{path} holds no rank for {some(wrong)}; {SHAPE} is needed")
    return {name: rank if r is None else r for name, r in given.items()}
