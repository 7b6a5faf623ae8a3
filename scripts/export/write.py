"""Writes an export: the package, what it must say of some real positions, and the proof that it does."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import agp
from agp.artifacts import digest, stamp, write_bytes, write_json
from curricula import recipes, runner
from curricula.features import Features
from curricula.report.collect import ABOUT, parsed
from curricula.teacher import teacher
from export import blob, coreml, cost, decisions, device, evaluate, folder, judges, program, sample, survey, verify
from export.compress import Smaller
from export.decisions import TIES
from export.folder import ASSET, CARD, CORE_AI, PACKAGE, SAMPLE, VERIFICATION
from export.ops import Entry
from export.ranges import Seen
from export.verify import Proof
from heads import bundle
from heads.bundle import Bundle
from scripts.export import origin
from scripts.export.card import card
from scripts.export.parts import chosen, parts
from scripts.steps import Steps

REFUSED = ("ranges", "zeros")  # what fails here is not written at all


class Asked(NamedTuple):
    run: Path
    room: int  # keys of each kind that a program takes
    documents: int
    past_gates: str | None  # why a run is exported whose gates are not passed
    smaller: list[Smaller]  # packages beside that of half precision


def write(asked: Asked, out: Path) -> Proof:
    """Into a new folder, which is there when it is whole."""
    gates = passed(asked)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        proof = made(asked, gates, part)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return proof


def made(asked: Asked, gates: dict[str, str], part: Path) -> Proof:
    units = len(verify.DEVICE) if device.HERE else 0
    steps = Steps(6 + len(origin.PAIRS) + CORE_AI + units + len(asked.smaller))
    with steps("the run's heads"):
        heads = bundle.load(asked.run, teacher(asked.run / "domain").model)
        features = Features(asked.run / "harvest", "test")
        entries, rules = program.entries(heads, asked.room), decisions.rules(heads)
    with steps("the package"):
        documents = chosen(features, asked.room, asked.documents)
        weights = coreml.save(part / PACKAGE, entries, "one")
        gained(asked.smaller, part / PACKAGE)
    with steps("real positions"):
        given = parts(heads, features, entries, asked.room, documents)
        sample.save(part / SAMPLE, given)
    compared = origin.compared(heads, features, entries, asked.room, documents, rules)
    verdicts = [*steps.each("what heads say", compared)]
    with steps("the asset"):
        content = authored(part / ASSET, entries)
    seen, program_read = Seen(), evaluate.load(part / PACKAGE)
    verdicts += steps.each("what is saved", judges.saved(part, program_read, given, rules, seen, CORE_AI))
    costs = steps.each("smaller weights", (cost.made(part, entries, of, given, rules) for of in asked.smaller))
    manifest = told(asked, part, gates) | {
        "smaller": dict(zip((of.kind for of in asked.smaller), costs, strict=True)),
        "asset": content,
        "decisions": rules,
        "inputs": {name: {of: list(size) for of, size in entry.inputs.items()} for name, entry in entries.items()},
        "outputs": {name: {of: x.shape[1] for of, x in part.said.items()} for name, part in given.items()},
        "weights": sorted(weights),
        "states": states(features, documents, heads),
        "largest": {name: round(size, 3) for name, size in sorted(seen.largest.items())},
    }
    with steps("each operation"):
        proof = Proof(judges.checks(program_read, given, manifest["inputs"], seen), verdicts)
    if wrong := [of for of in proof.checks if of.name in REFUSED and not of.passed]:
        raise ValueError("; ".join(of.told for of in wrong))
    write_json(part / VERIFICATION, verify.as_json(proof))
    write_bytes(part / CARD, card(manifest, proof).encode())
    folder.write(part, manifest)
    return proof


def gained(smaller: list[Smaller], package: Path) -> None:
    largest = max(of.bytes for of in blob.blobs(package))
    if idle := [of for of in smaller if of.least > largest]:
        raise ValueError(
            f"--weights {idle[0].kind}: the largest weight of this run has {largest:,} bytes, and only those from "
            f"{idle[0].least:,} on gain by it; --from-bytes says otherwise"
        )


def states(features: Features, documents: list[int], heads: Bundle) -> dict[str, Any]:
    """How large they become after each block, of which the heads read some."""
    blocks = survey.largest(heads.decoder, [features.of(d, "ids") for d in documents])
    return {"blocks": [round(size, 3) for size in blocks], "taps": {tap: round(blocks[tap], 3) for tap in heads.taps}}


def authored(place: Path, entries: Mapping[str, Entry]) -> str | None:
    """The digest of what the asset computes, where one can be made."""
    if not CORE_AI:
        return None
    from export import asset, coreai

    coreai.save(place, entries)
    return asset.content(place)


def passed(asked: Asked) -> dict[str, str]:
    """The state of every stage, all of it read; a run that is not whole, or whose gates are not passed, is refused
    unless told."""
    name = recipe(asked.run)
    states = stages(asked.run, name)
    unmade = {stage: state for stage, state in states.items() if not state.startswith(("whole", "past", "its gate"))}
    if unmade:
        raise ValueError(f"{asked.run} is not whole: {listed(unmade)}. `agp train {name} --out {asked.run}` goes on")
    short = {stage: told_of(asked.run / stage, state) for stage, state in states.items() if state != "whole"}
    if short and asked.past_gates is None:
        raise ValueError(f'{asked.run}: {listed(short)}. Export it all the same with --past-gates "why"')
    return states


def recipe(run: Path) -> str:
    damages: list[str] = []
    name = (parsed(run / ABOUT, damages) or {}).get("recipe") if (run / ABOUT).exists() else None
    if damages:
        raise ValueError(f"{damages[0]}; the same `agp train` writes it again")
    if name not in recipes.NAMES:
        raise ValueError(f"{run} is no run of a recipe; `agp runs` lists those there are")
    return name


def stages(run: Path, recipe: str) -> dict[str, str]:
    names = [stage.name for stage in recipes.stages(getattr(recipes, recipe)())]
    return {name: runner.state(run / name, thorough=True) for name in names}


def told_of(stage: Path, state: str) -> str:
    """With what keeps its gate closed."""
    return "; ".join([state, *runner.closed(runner.read(stage))])


def listed(states: dict[str, str]) -> str:
    return "; ".join(f"{stage} ({state})" for stage, state in states.items())


def told(asked: Asked, part: Path, gates: dict[str, str]) -> dict[str, Any]:
    """Of what it was made, and what all exports share."""
    made = {stage: runner.read(asked.run / stage) for stage in gates}
    return {
        "agp": agp.__version__,
        "recipe": recipe(asked.run),
        "model": made["domain"]["places"]["model"],
        "stages": {stage: manifest["digest"] for stage, manifest in made.items()},
        "gates": gates,
        "past_gates": asked.past_gates,
        "content": coreml.content(part / PACKAGE),
        "sample": digest(part / SAMPLE),
        "room": asked.room,
        "documents": asked.documents,
        "units": program.UNITS,
        "ties": TIES,
        "made": stamp(),
    }
