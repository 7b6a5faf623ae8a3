"""What a run must keep to go on in the same bits: weights, optimizer, step, best score; whole files, by rename."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from agp.artifacts import cleared, write_bytes, write_safetensors
from agp.hosts import differences, most, spread
from agp.models.tensors import read_header, shown, some

STATE, BEST = "state.safetensors", "best.safetensors"
TOLD = 1024  # bytes in which a state is told to other hosts, arrays aside


@dataclass
class State:
    made_with: dict[str, Any]  # config and inputs: a state made with others is not continued
    step: int = 0
    loss: float = math.nan  # of the last batch
    best: float | None = None
    best_step: int | None = None
    worse: int = 0  # evaluations since
    evaluated: int = -1  # the last step that was
    saved: int = field(default=0, compare=False)

    @classmethod
    def load(cls, out: Path, model: Any, optimizer: Any, config: Mapping[str, Any], inputs: Mapping[str, Any]) -> Self:
        """Put what `out` holds into model and optimizer; a fresh state where it holds none."""
        cleared(out)
        path = out / STATE
        if not path.exists():
            return cls(asked(config, inputs))
        kept = made_with(path, config, inputs)
        arrays, _ = read(path)
        wanted = flat(model, optimizer)
        fitting(path, arrays, wanted)
        put(arrays, model, optimizer)
        return cls(**kept, saved=kept["step"])

    def share(self, group: Any, out: Path, model: Any, optimizer: Any) -> None:
        """All hosts go on from what the one that is furthest holds, its best weights included."""
        source = most(group, self.step)
        there = group.rank() == source
        told = mx.array(np.frombuffer(json.dumps(self.kept()).ljust(TOLD).encode(), np.uint8))
        best = read(out / BEST)[0] if there and self.best is not None else trained(model)
        told, arrays, best = spread(group, source, [told, flat(model, optimizer), best])
        for name, value in json.loads(bytes(np.array(told))).items():
            setattr(self, name, value)
        put(arrays, model, optimizer)
        if self.best is not None and not there:
            keep_best(out, best, self)

    def kept(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("made_with", "saved")}

    def judge(self, score: float) -> bool:
        """Whether it is the best yet."""
        self.evaluated = self.step
        better = math.isfinite(score) and (self.best is None or score < self.best)
        self.worse = 0 if better else self.worse + 1
        if better:
            self.best, self.best_step = score, self.step
        return better

    def save(self, out: Path, model: Any, optimizer: Any) -> None:
        kept = {"made_with": self.made_with, **self.kept()}
        write_safetensors(out / STATE, flat(model, optimizer), {"agp": json.dumps(kept)})
        self.saved = self.step


def asked(config: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({"config": config, "inputs": inputs}))


def made_with(path: Path, config: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a state says of itself, if it was made with the same."""
    about = read(path)[1]
    try:
        kept = json.loads(about["agp"])
    except (KeyError, ValueError) as e:
        raise ValueError(f"{path} is no state of a run; give another folder") from e
    others = [
        f"{setting(at)} = {brief(was)}, asked for is {brief(now)}"
        for at, was, now in differences(kept["made_with"], asked(config, inputs))
    ]
    if others:
        raise ValueError(
            f"{path.parent} holds a run made with {'; '.join(others)}. Ask as it was made, or give another folder"
        )
    return kept


def setting(at: str) -> str:
    """As it is called where it is given."""
    for stored, said in (("inputs.settings.", ""), ("inputs.", ""), ("config.", "fit.")):
        if at.startswith(stored):
            return said + at.removeprefix(stored)
    return at


def brief(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)


def flat(model: Any, optimizer: Any) -> dict[str, mx.array]:
    arrays: Any = tree_flatten({"model": model.trainable_parameters(), "optimizer": optimizer.state})
    return dict(arrays)


def read(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Arrays and what is said of them, of a file that is whole."""
    if not path.exists():
        raise ValueError(f"{path} is missing, though this run has made it; give another folder")
    if wrong := read_header(path)[1]:
        raise ValueError(f"this run cannot go on: {'; '.join(wrong)} in {path.parent}; give another folder")
    loaded: Any = mx.load(str(path), return_metadata=True)
    return loaded


def fitting(path: Path, arrays: Mapping[str, mx.array], wanted: Mapping[str, mx.array]) -> None:
    odd = sorted(wanted.keys() ^ arrays.keys()) or [n for n, a in arrays.items() if a.shape != wanted[n].shape]
    if odd:
        raise ValueError(f"{path} does not fit this model: {some(odd)}. Give another folder")


def read_best(out: Path, model: Any) -> None:
    """Leave the best weights in the model."""
    arrays, _ = read(out / BEST)
    fitting(out / BEST, arrays, trained(model))
    model.update(tree_unflatten(list(arrays.items())))


def put(arrays: dict[str, mx.array], model: Any, optimizer: Any) -> None:
    tree: Any = tree_unflatten(list(arrays.items()))
    model.update(tree["model"])
    optimizer.state = tree["optimizer"]


def trained(model: Any) -> dict[str, mx.array]:
    arrays: Any = tree_flatten(model.trainable_parameters())
    return dict(arrays)


def keep_best(out: Path, arrays: dict[str, mx.array], state: State) -> None:
    write_safetensors(out / BEST, arrays, {"step": str(state.best_step), "loss": str(state.best)})


def keep_rows(path: Path, step: int) -> None:
    """Drop what was written after the state that is resumed, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise ValueError(f"{path} holds {shown(line)}, which no run wrote; give another folder")
        if step and row["step"] <= step:
            kept.append(line)
    write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
