"""The harvest stage: the teacher's states along its own text, what the lens says of them, and how much they survive.

A shard is some documents of one role, alike in length. What is in it depends on nothing but its number, so shards that
a killed run left are kept, and hosts may share them out and then give each other theirs.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from agp.adapters import attach, detach
from agp.artifacts import write_json
from agp.batch import padded
from agp.bounds import Count, Positive, Seed, Whole
from agp.models.decoder import Decoder
from agp.models.load import Loaded
from curricula.clustered import clusters
from curricula.documents import Prompt, prompts
from curricula.exchange import exchange, ranked
from curricula.features import SHARD, Features, write
from curricula.observe import ends, kinds, observe, observed
from curricula.stages import rows
from curricula.teacher import folded, teacher

ROLES = ("heads", "tune", "calibrate", "test")


@dataclass(frozen=True, kw_only=True)
class Config:
    taps: tuple[int, ...] = ()  # blocks after which states are kept; none: the last producer and three above it
    longest: Count = 512  # tokens of a prompt
    window: Count = 24  # tokens of a window of plain text
    windows: tuple[Whole, ...] = (400, 60, 200, 200)  # of each source of plain text, for each role
    turns: tuple[Whole, ...] = ()  # likewise of each source of conversations, whose last turn is answered; none: all
    answer: Count = 24  # tokens that the teacher says at most
    temperature: Positive = 1.0  # at which it goes on with plain text; what it answers is its likeliest
    shard: Count = 128  # documents
    together: Count = 32  # of them at once, once it is known how much is said to each
    keep: Count = 64  # of the teacher's likeliest tokens
    sigma: Positive = 0.6  # noise beside a state
    noises: Whole = 2
    omissions: Whole = 2
    vital: Count = 3  # of what heads learn from, one shard in so many is disturbed
    compared: Count = 64  # documents on which the base's states are held beside the teacher's
    seed: Seed = 0


def run(config: Config, needs: Mapping[str, Path], out: Path, group: Any) -> dict[str, Any]:
    loaded = teacher(needs["domain"])
    assert loaded.tokenizer is not None
    taps, found = chosen(config, loaded.model), {}
    for role in ROLES:
        given = {source: of for source, of in rows.read(needs["rows"], role).items() if source != rows.GENERAL}
        found[role] = prompts(given, loaded.tokenizer, **cuts(config, role))
    parts = shards(found, config.shard)
    moved = change(config, loaded, taps, found["heads"])
    folded(loaded.model)
    make(config, loaded, taps, parts, out, group)
    about(config, loaded.model, taps, parts, out)
    return measured(out) | {"adapter_change": moved}


def cuts(config: Config, role: str) -> dict[str, Any]:
    """What of a role's rows is observed."""
    number = ROLES.index(role)
    turns = config.turns[number] if config.turns else None
    return {"longest": config.longest, "window": config.window, "windows": config.windows[number], "turns": turns}


def faults(config: Config) -> list[str]:
    wrong = []
    if config.noises == config.omissions == 0:
        wrong.append("noises and omissions are both 0: vitality needs some disturbance")
    if len(config.windows) != len(ROLES):
        wrong.append(f"windows are {config.windows}; a number for each of {', '.join(ROLES)} is needed")
    if len(config.turns) not in (0, len(ROLES)):
        wrong.append(f"turns are {config.turns}; a number for each of {', '.join(ROLES)}, or none, is needed")
    if config.window >= config.longest:
        wrong.append(f"window is {config.window}; less than longest, {config.longest}, is needed")
    return wrong


def chosen(config: Config, model: Decoder) -> list[int]:
    """Blocks after which the token may leave: where all keys and values are made."""
    first, count = model.config.num_producers - 1, model.config.num_layers
    taps = list(config.taps) or [round(first + k * (count - 1 - first) / 4) for k in range(4)]
    if taps != sorted(set(taps)) or not taps or taps[0] < first or taps[-1] > count - 2:
        raise ValueError(
            f"taps are {taps}; blocks from {first}, the last that makes keys and values, to {count - 2} are needed, in "
            "rising order"
        )
    return taps


def shards(found: Mapping[str, Sequence[Prompt]], size: int) -> dict[str, list[Prompt]]:
    """By file name. Drawn continuations and likeliest ones do not share one."""
    parts = {}
    for role, all_of in found.items():
        kinds = [[p for p in all_of if p.drawn == drawn] for drawn in (False, True)]
        cuts = [kind[at : at + size] for kind in kinds for at in range(0, len(kind), size)]
        parts |= {SHARD.format(role=role, number=number): cut for number, cut in enumerate(cuts)}
    return parts


def make(
    config: Config, loaded: Loaded, taps: list[int], parts: Mapping[str, list[Prompt]], out: Path, group: Any
) -> None:
    """All shards, each by one host, for all hosts."""
    rank, size = ranked(group)
    mine = [name for number, name in enumerate(parts) if number % size == rank and not (out / name).exists()]
    for name in tqdm(mine, desc="harvest", unit="shard", disable=bool(rank), file=sys.stderr):
        number = list(parts).index(name)
        write(out / name, observe(config, loaded, taps, parts[name], number, disturbed(config, name, number)))
        mx.clear_cache()
    exchange(group, [out / name for name in parts])


def disturbed(config: Config, name: str, number: int) -> bool:
    """Thresholds ask for no vitality, and it takes the most time: elsewhere it is nan."""
    return not name.startswith("calibrate-") and (number % config.vital == 0 or not name.startswith("heads-"))


def about(config: Config, model: Decoder, taps: list[int], parts: Mapping[str, list[Prompt]], out: Path) -> None:
    """What the arrays cannot say of themselves."""
    told = {role: [of for name, of in parts.items() if name.startswith(f"{role}-")] for role in ROLES}
    documents = {
        role: [[{"source": p.source, "cluster": p.cluster, "concepts": p.concepts} for p in of] for of in shards]
        for role, shards in told.items()
    }
    write_json(out / "about.json", {"taps": taps, "end": ends(config), "lent": kinds(model), "documents": documents})


def measured(out: Path) -> dict[str, Any]:
    found = {role: Features(out, role) for role in ROLES}
    test = found["test"]
    by_tap = {
        name: dict(zip(map(str, test.taps), np.round(test.whole(name).mean(0, dtype=float), 4).tolist(), strict=True))
        for name in ("agrees", "divergence", "vitality")
    }
    return {
        **{f"{role}_documents": int(clusters(features).max()) + 1 for role, features in found.items()},
        **{f"{role}_windows": len(features.begins) for role, features in found.items()},
        **{f"{role}_positions": features.count for role, features in found.items()},
        "lens": by_tap,
    }


def change(config: Config, loaded: Loaded, taps: list[int], given: list[Prompt]) -> float:
    """By how much of its size the adapter moves the state at the tap that it moves least."""
    model = loaded.model
    picked = [given[i] for i in np.linspace(0, len(given) - 1, min(config.compared, len(given))).astype(int)]
    ids, pad = padded([prompt.ids for prompt in picked])
    with_it = observed(model, ids, pad, taps, 1, ids.shape[1])[1]
    adapter, arrays = detach(model)
    without = observed(model, ids, pad, taps, 1, ids.shape[1])[1]
    attach(model, adapter, arrays)
    moved = [mx.linalg.norm(a - b) / mx.linalg.norm(b) for a, b in zip(with_it, without, strict=True)]
    return min(float(m.item()) for m in moved)  # type: ignore[arg-type]
