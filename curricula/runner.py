"""Runs a recipe's stages in order: whole ones are skipped, changed or damaged ones refused, each ends with a gate.

A stage's manifest is written last and by rename, so a folder that has one is whole. It holds what the stage was made
of, what was measured, and a digest of every file; its own digest goes into the manifests of the stages that need it.
A gate is a condition on behaviour: one that is not met stops the run with the numbers, and what was made stays.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

import agp
from agp.artifacts import cleared, digest, write_json
from agp.figures import met
from agp.hosts import added, differences
from agp.models.tensors import shown, some
from agp.train import METRICS
from curricula.exchange import exchange

MANIFEST, TIMES = "manifest.json", "times.json"
HANDED = ".manifest.json"
SIDE = (MANIFEST, TIMES, METRICS)  # what says how it went is no part of what was made

Run = Callable[[Any, dict[str, Path], Path, Any], dict[str, Any]]  # (config, needs, out, hosts as one) -> metrics


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    run: Run
    config: Any  # a dataclass
    needs: tuple[str, ...] = ()
    gate: Mapping[str, str] = field(default_factory=dict)  # metric -> the goal it must meet
    given: Callable[[Any], dict[str, Any]] = lambda config: {}  # digests of what it reads from outside the run
    places: tuple[str, ...] = ()  # settings that say where that lies: it may be moved


class Past(NamedTuple):
    """A gate that a person lets pass."""

    stage: str
    why: str


class GateClosed(ValueError):
    """A stage did what it does, and that is not good enough."""


def check(stages: Sequence[Stage]) -> None:
    """Whether they can be run in this order."""
    wrong, before = [], []
    for stage in stages:
        if stage.name in before:
            wrong.append(f"stage {stage.name} appears twice")
        if late := [name for name in stage.needs if name not in before]:
            wrong.append(f"stage {stage.name} needs {', '.join(late)}, which must come before it")
        before.append(stage.name)
    if wrong:
        raise ValueError("; ".join(wrong))


def run(
    stages: Sequence[Stage],
    root: Path,
    *,
    group: Any = None,
    until: str | None = None,
    past: Past | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, dict]:
    """Finish every stage up to `until`; the manifests of all that are whole then."""
    check(stages)
    names = [stage.name for stage in stages]
    for asked in [until] if past is None else [until, past.stage]:
        if asked is not None and asked not in names:
            raise ValueError(f"there is no stage {asked}; the stages are {', '.join(names)}")
    made: dict[str, dict] = {}
    for stage in stages[: len(stages) if until is None else names.index(until) + 1]:
        out = root / stage.name
        cleared(out)
        key = made_of(stage, {name: made[name]["digest"] for name in stage.needs})
        manifest, places = whole(out, key), {name: getattr(stage.config, name) for name in stage.places}
        if not everywhere(group, manifest):  # asked of all, whether it is here or not
            manifest = handed(group, out, key)
        if manifest is None:
            manifest = finish(stage, key, root, group)
            say(f"{stage.name}: {took(out)}")
        else:
            say(f"{stage.name}: whole already")
        if manifest.get("places") != places:
            manifest = write(out, manifest | {"places": places})
        made[stage.name] = through(stage.name, manifest, out, past)
    return made


def made_of(stage: Stage, needs: dict[str, str]) -> dict[str, Any]:
    """All that decides what a stage makes."""
    config = {name: value for name, value in asdict(stage.config).items() if name not in stage.places}
    found = {"config": config, "given": stage.given(stage.config), "needs": needs}
    return json.loads(json.dumps({"stage": stage.name, **found, "gate": dict(stage.gate), "agp": agp.__version__}))


def changed(stages: Sequence[Stage], root: Path) -> list[str]:
    """Whole stages that were made of something else than is asked for now."""
    wrong, digests = [], {}
    for stage in stages:
        if not (root / stage.name / MANIFEST).exists():
            break
        try:
            manifest = read(root / stage.name)
            asked_as_made(root / stage.name, manifest, made_of(stage, {name: digests[name] for name in stage.needs}))
        except ValueError as e:
            wrong.append(str(e))
            break
        digests[stage.name] = manifest["digest"]
    return wrong


def finish(stage: Stage, key: dict[str, Any], root: Path, group: Any) -> dict:
    out = root / stage.name
    out.mkdir(parents=True, exist_ok=True)
    times(out)  # asked at the end, when hours may have gone by
    mx.reset_peak_memory()
    started = time.perf_counter()
    metrics = stage.run(stage.config, {name: root / name for name in stage.needs}, out, group)
    if absent := sorted(stage.gate.keys() - metrics.keys()):
        told = f"stage {stage.name} measures no {', '.join(absent)}, which its gate asks for"
        raise ValueError(f"{told}; it measures {', '.join(sorted(metrics))}")
    note_time(out, time.perf_counter() - started)
    manifest = {**key, "metrics": metrics, "files": files(out), "past_gate": None}
    return write(out, manifest)


def write(out: Path, manifest: dict) -> dict:
    """With its own digest; last of all, so that its presence means that the folder is whole."""
    manifest = json.loads(json.dumps(manifest))
    manifest["digest"] = digest_of(manifest)
    write_json(out / MANIFEST, manifest)
    return manifest


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Of all but itself, and where things lay."""
    body = {name: value for name, value in manifest.items() if name not in ("digest", "places")}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def files(out: Path) -> dict[str, dict[str, Any]]:
    """Of each file below: its size and digest."""
    found = sorted(path for path in out.rglob("*") if path.is_file() and path.name[0] != ".")
    return {
        path.relative_to(out).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in found
        if path.name not in SIDE
    }


def whole(out: Path, key: Mapping[str, Any]) -> dict | None:
    """The manifest of what was made of the same, checked to the last byte; None where nothing is whole yet."""
    if not (out / MANIFEST).exists():
        return None
    manifest = read(out)
    asked_as_made(out, manifest, key)
    if wrong := damages(out, manifest):
        raise ValueError(f"{out} is damaged: {some(wrong, 400, '; ')}. Make it again: --from {out.name}")
    return manifest


def asked_as_made(out: Path, manifest: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    if others := [f"{at} was {was!r} and is {now!r}" for at, was, now in differences(made(manifest), dict(key))]:
        raise ValueError(
            f"{out} was made of something else: {some(others, 400, '; ')}. Ask as it was made, give another --out, or"
            f" make it and what follows again: --from {out.name}"
        )


def made(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: manifest.get(name) for name in ("stage", "config", "given", "needs", "gate", "agp")}


def read(out: Path) -> dict:
    """A manifest as it was written; one that was edited since is refused."""
    path = out / MANIFEST
    try:
        manifest = dict(json.loads(path.read_text()))
        if "digest" not in manifest:
            raise ValueError("it has no digest")
        sound = manifest["digest"] == digest_of(manifest)
    except (ValueError, TypeError) as e:
        raise ValueError(
            f"{path} is no manifest that can be read: {shown(str(e))}. Make it again: --from {out.name}"
        ) from e
    if not sound:
        raise ValueError(f"{path} was changed after it was written. Make it again: --from {out.name}")
    return manifest


def damages(out: Path, manifest: Mapping[str, Any], thorough: bool = True) -> list[str]:
    wrong = []
    for name, known in manifest["files"].items():
        path = out / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != known["bytes"]:
            wrong.append(f"{name} has {path.stat().st_size:,} bytes and had {known['bytes']:,}")
        elif thorough and digest(path) != known["sha256"]:
            wrong.append(f"{name} has other bytes than were written")
    return wrong


def everywhere(group: Any, manifest: dict | None) -> bool:
    """Whether all hosts have the stage whole: a host that has helps those that have not."""
    (lacking,) = added(group, [mx.array([float(manifest is None)])])
    return not lacking.item()


def handed(group: Any, out: Path, key: Mapping[str, Any]) -> dict | None:
    """A stage that some host has whole, given to all that have not; None if nobody has it."""
    told = out / HANDED
    if (out / MANIFEST).exists():
        told.write_bytes((out / MANIFEST).read_bytes())
    exchange(group, [told])
    if not told.exists():
        return None
    exchange(group, [out / name for name in json.loads(told.read_text())["files"]])
    told.replace(out / MANIFEST)
    return whole(out, key)


def verdicts(manifest: Mapping[str, Any]) -> list[tuple[str, float | None, str, bool]]:
    """Of each condition of the gate: metric, value (none where nothing could be measured), goal, whether it is met."""
    found = [(name, manifest["metrics"][name], goal) for name, goal in manifest["gate"].items()]
    return [(name, value, goal, value is not None and met(value, goal)) for name, value, goal in found]


def short(metric: str, value: float | None) -> str:
    return f"{metric} could not be measured" if value is None else f"{metric} is {value:.4g}"


def closed(manifest: Mapping[str, Any]) -> list[str]:
    """What keeps its gate closed."""
    found = [(short(metric, value), goal) for metric, value, goal, open in verdicts(manifest) if not open]
    return [f"{told}, and {goal} is needed" for told, goal in found]


def through(name: str, manifest: dict, out: Path, past: Past | None) -> dict:
    """The manifest, if its gate lets it through or a person does."""
    if not (why := closed(manifest)) or manifest["past_gate"] is not None:
        return manifest
    if past is None or past.stage != name:
        raise GateClosed(
            f"the gate of {name} is closed: {'; '.join(why)}. What was made stays in {out}. Change its settings and"
            f' make it again with --from {name}, or go on all the same with --past-gate {name} --why "..."'
        )
    return write(out, {**manifest, "past_gate": {"why": past.why, "closed": why}})


def note_time(out: Path, seconds: float) -> None:
    """Added up over all attempts."""
    before = times(out) or {"seconds": 0.0, "peak_bytes": 0}
    peak = max(int(before["peak_bytes"]), mx.get_peak_memory())
    write_json(out / TIMES, {"seconds": round(before["seconds"] + seconds, 3), "peak_bytes": peak})


def state(out: Path, thorough: bool = False) -> str:
    """What can be said of a stage at a glance; if `thorough`, after reading all of it."""
    if not (out / MANIFEST).exists():
        return "begun" if out.exists() else "not begun"
    try:
        manifest = read(out)
    except ValueError as e:
        return f"damaged: {e}"
    if wrong := damages(out, manifest, thorough):
        return f"damaged: {some(wrong)}"
    if all(passed for *_, passed in verdicts(manifest)):
        return "whole"
    return "its gate is closed" if manifest["past_gate"] is None else f"past its gate: {manifest['past_gate']['why']}"


def took(out: Path) -> str:
    found = times(out)
    return "" if found is None else f"{found['seconds']:.0f} s, {found['peak_bytes'] / 1e9:.2f} GB at its peak"


def times(out: Path) -> dict[str, float] | None:
    """How long it took, over all attempts, and what it held."""
    if not (out / TIMES).exists():
        return None
    try:
        found = json.loads((out / TIMES).read_text())
        return {name: float(found[name]) for name in ("seconds", "peak_bytes")}
    except (ValueError, TypeError, KeyError) as e:
        raise ValueError(f"{out / TIMES} cannot be read; nothing needs it: remove it") from e


def aside(stages: Sequence[Stage], root: Path, first: str) -> None:
    """Make room for `first` and all after it; what is there is kept beside."""
    names = [stage.name for stage in stages]
    if first not in names:
        raise ValueError(f"there is no stage {first}; the stages are {', '.join(names)}")
    for name in names[names.index(first) :]:
        if (root / name).exists():
            number = next(n for n in range(1, 1000) if not (root / f"{name}.{n}").exists())
            (root / name).rename(root / f"{name}.{number}")
