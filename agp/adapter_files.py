"""Adapters on disk: mlx-lm's layout, which is ours too, and PEFT's. Both are read from a folder and written to one.

mlx-lm knows one rank and one scale an adapter: smaller ranks are padded with zeros, other scales folded into B. What
the ranks were is written beside, where it does not look. Every tensor has to land; nothing that is there is ignored.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from agp.adapters import Adapter, Part
from agp.artifacts import write_json, write_safetensors
from agp.models.files import fault, read_json, there
from agp.models.tensors import clean, read_header, shown, some
from agp.models.weights import module_name

FILE, PEFT_FILE, CONFIG = "adapters.safetensors", "adapter_model.safetensors", "adapter_config.json"
KEPT = {  # by model type, what stands before `layers` in mlx-lm and in transformers
    "gemma4": ("language_model.model.", "model.language_model."),
    "gemma4_text": ("model.", "model."),
    "gemma3n": ("model.language_model.", "model.language_model."),
    "gemma3n_text": ("model.", "model."),
}
PEFT_NAMES = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "m"}
PEFT_ONLY = {  # settings with an effect that AGP does not know, and the values that have none
    "bias": ("none",),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "fan_in_fan_out": (False,),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, {}),
    "use_qalora": (False,),
    "alora_invocation_tokens": (None,),
}
Arrays = dict[str, mx.array]


class Saved(NamedTuple):
    adapter: Adapter
    arrays: Arrays
    about: dict[str, Any]  # what else its config says


def save(folder: Path | str, model_type: str, adapter: Adapter, arrays: Mapping[str, mx.array], **about: Any) -> None:
    """mlx-lm's layout; `about` (the base, its digest, the data) is written beside."""
    before, folder = KEPT[model_type][0], Path(folder)
    rank = max(part.rank for part in adapter.parts.values())
    scale = next(part.scale for part in adapter.parts.values() if part.rank == rank)
    stored = {}
    for path, part in adapter.parts.items():
        a, b = arrays[f"{path}.lora_a"], arrays[f"{path}.lora_b"]
        b = b if part.scale == scale else b * (part.scale / scale)
        missing = rank - part.rank
        stored[f"{before}{path}.lora_a"] = mx.pad(a, [(0, 0), (0, missing)])
        stored[f"{before}{path}.lora_b"] = mx.pad(b, [(0, missing), (0, 0)])
        if adapter.dora:
            stored[f"{before}{path}.m"] = arrays[f"{path}.m"]
    config = {
        "fine_tune_type": "dora" if adapter.dora else "lora",
        "num_layers": 0,  # the keys are whole paths: mlx-lm looks for them in the whole model
        "lora_parameters": {
            "rank": rank,
            "scale": scale,
            "dropout": adapter.dropout,
            "keys": [before + path for path in adapter.parts],
        },
        "ranks": {before + path: part.rank for path, part in adapter.parts.items()},
        **about,
    }
    write_safetensors(folder / FILE, stored)
    write_json(folder / CONFIG, config)


def load(folder: Path | str) -> Saved:
    """An adapter in either layout, told apart by the file that is there."""
    if not str(folder):
        raise ValueError("the folder of the adapter is an empty name")
    folder = Path(folder)
    found = [name for name in (FILE, PEFT_FILE) if there(folder / name)]
    if len(found) != 1:
        what = f"both {FILE} and {PEFT_FILE}" if found else f"neither {FILE} nor {PEFT_FILE}"
        raise ValueError(f"{folder} holds {what}; one is needed (pickle files are never opened)")
    config = read_json(folder / CONFIG)
    arrays = read_arrays(folder / found[0])
    saved = from_mlx(config, arrays) if found == [FILE] else from_peft(config, arrays)
    if not saved.adapter.dora and not any(a.any().item() for n, a in saved.arrays.items() if n.endswith(".lora_b")):
        raise ValueError(f"{folder} holds an adapter without effect: every lora_b is zero")
    return saved


def read_arrays(file: Path) -> Arrays:
    """By stored name, in float32, from a file whose header makes sense."""
    if why := fault(file):
        raise ValueError(why)
    tensors, wrong = read_header(file)
    if odd := [t.name for t in tensors if t.dtype not in ("F32", "F16", "BF16")]:
        wrong.append(f"{file.name}: no floats in {some(odd)}")
    if wrong:
        raise ValueError("; ".join(wrong))
    loaded: Any = mx.load(str(file))
    return {name: a.astype(mx.float32) for name, a in loaded.items()}


def split(stored: str, leaves: Mapping[str, str]) -> tuple[str, str] | None:
    """The module path and our own name of an array; None where it is no part of an adapted text model."""
    for ending, leaf in leaves.items():
        if stored.endswith(f".{ending}"):
            path = module_name(stored.removesuffix(f".{ending}"))
            return None if path is None else (path, leaf)
    return None


def gather(arrays: Arrays, leaves: Mapping[str, str]) -> dict[str, Arrays]:
    """By module path, its arrays by our names."""
    found: dict[str, Arrays] = {}
    odd = []
    for stored, array in arrays.items():
        names = split(stored, leaves)
        if names is None or names[1] in found.get(names[0], {}):
            odd.append(stored)
        else:
            found.setdefault(names[0], {})[names[1]] = array
    wrong = [f"no part of a text model's adapter: {some(odd)}"] if odd else []
    if half := [path for path, own in found.items() if not {"lora_a", "lora_b"} <= own.keys()]:
        wrong.append(f"without A or without B: {some(half)}")
    elif bad := [path for path, own in found.items() if not fitting(own)]:
        wrong.append(f"A and B that do not fit each other: {some(bad)}")
    if not found:
        wrong.append("it names no linear")
    magnitudes = {"m" in own for own in found.values()}
    if len(magnitudes) > 1:
        wrong.append(
            f"LoRA and DoRA mixed: without magnitudes are {some(p for p, own in found.items() if 'm' not in own)}"
        )
    if wrong:
        raise ValueError("; ".join(wrong))
    return found


def fitting(own: Arrays) -> bool:
    a, b = own["lora_a"], own["lora_b"]
    return a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] and ("m" not in own or own["m"].shape == b.shape[1:])


def from_mlx(config: Mapping[str, Any], arrays: Arrays) -> Saved:
    how = config.get("lora_parameters")
    if not isinstance(how, dict) or type(how.get("scale")) not in (int, float):
        raise ValueError(f"{CONFIG}: lora_parameters has no number for scale: {shown(how)}")
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise ValueError(f"{CONFIG}: fine_tune_type is {shown(kind)}; lora and dora are adapters")
    found = gather(arrays, {"lora_a": "lora_a", "lora_b": "lora_b", "m": "m"})
    if any("m" in own for own in found.values()) != (kind == "dora"):
        raise ValueError(f"{CONFIG} says {kind}, the tensors say otherwise")
    ranks = {module_name(stored): r for stored, r in table(config, "ranks").items()}
    parts = {}
    for path, own in found.items():
        rank = ranks.get(path, own["lora_a"].shape[1])
        if type(rank) is not int or not 0 < rank <= own["lora_a"].shape[1] or own["lora_b"][rank:].any().item():
            raise ValueError(f"{CONFIG}: {clean(path)} has rank {shown(rank)}, its tensors do not")
        own["lora_a"], own["lora_b"] = own["lora_a"][:, :rank], own["lora_b"][:rank]
        parts[path] = Part(rank, float(how["scale"]))
    adapter = Adapter(parts=parts, dora=kind == "dora", dropout=share(how.get("dropout", 0.0)))
    return Saved(adapter, flat(found), {k: v for k, v in config.items() if k not in ("lora_parameters", "ranks")})


def table(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{CONFIG}: {name} is {shown(value)}; an object by module is needed")
    return value


def share(dropout: Any) -> float:
    if type(dropout) not in (int, float):
        raise ValueError(f"{CONFIG}: dropout is {shown(dropout)}; a number is needed")
    return float(dropout)


def flat(found: Mapping[str, Arrays]) -> Arrays:
    return {f"{path}.{name}": a for path, own in found.items() for name, a in own.items()}


def save_peft(
    folder: Path | str, model_type: str, adapter: Adapter, arrays: Mapping[str, mx.array], base: str | None = None
) -> None:
    before, folder = KEPT[model_type][1], Path(folder)
    names = {ours: theirs for theirs, ours in PEFT_NAMES.items()}
    stored = {}
    for name, array in arrays.items():
        path, _, leaf = name.rpartition(".")
        stored[f"base_model.model.{before}{path}.{names[leaf]}"] = array if leaf == "m" else array.T
    rank, scale = next(iter(adapter.parts.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale * rank,
        "rank_pattern": {before + path: part.rank for path, part in adapter.parts.items() if part.rank != rank},
        "alpha_pattern": {
            before + path: part.scale * part.rank
            for path, part in adapter.parts.items()
            if part.scale * part.rank != scale * rank
        },
        "target_modules": [before + path for path in adapter.parts],
        "use_dora": adapter.dora,
        "use_rslora": False,
        "lora_dropout": adapter.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_safetensors(folder / PEFT_FILE, stored, {"format": "pt"})
    write_json(folder / CONFIG, config)


def from_peft(config: Mapping[str, Any], arrays: Arrays) -> Saved:
    wrong = [f"{k} is {shown(config[k])}" for k, fine in PEFT_ONLY.items() if k in config and config[k] not in fine]
    if config.get("peft_type") != "LORA":
        wrong.append(f"peft_type is {shown(config.get('peft_type'))}")
    if wrong:
        raise ValueError(f"{CONFIG}: AGP reads PEFT's LoRA, rsLoRA and DoRA without extras; here {'; '.join(wrong)}")
    arrays = {name.removeprefix("base_model.model."): a.T for name, a in arrays.items()}  # vectors stay as they are
    found = gather(arrays, PEFT_NAMES)
    parts = {}
    for path, own in found.items():
        rank = own["lora_a"].shape[1]
        alpha = pattern(table(config, "alpha_pattern"), path, config.get("lora_alpha"))
        stated = pattern(table(config, "rank_pattern"), path, config.get("r"))
        if type(alpha) not in (int, float) or stated != rank:
            raise ValueError(
                f"{CONFIG}: {clean(path)} has rank {rank}; stated are rank {shown(stated)}, alpha {shown(alpha)}"
            )
        parts[path] = Part(rank, alpha / (rank**0.5 if config.get("use_rslora") else rank))
    dora, dropout = bool(config.get("use_dora")), share(config.get("lora_dropout", 0.0))
    if any("m" in own for own in found.values()) != dora:
        raise ValueError(f"{CONFIG} says use_dora is {dora}, the tensors say otherwise")
    return Saved(Adapter(parts=parts, dora=dora, dropout=dropout), flat(found), dict(config))


def pattern(by_name: Mapping[str, Any], path: str, otherwise: Any) -> Any:
    """PEFT's keys are regular expressions for the end of a name; what is plain in them names a module or its end."""
    for key, value in by_name.items():
        plain = module_name(re.sub(r"^\^|\$$|\\", "", key))
        if plain is not None and (path == plain or path.endswith(f".{plain}")):
            return value
    return otherwise
