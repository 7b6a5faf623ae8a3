"""What the run that an export was made of says of it now."""

from pathlib import Path
from typing import Any

from agp.hosts import differences
from agp.models.tensors import some
from curricula import runner
from curricula.features import Features
from curricula.teacher import teacher
from export import coreml, decisions, folder, program
from export.folder import Check
from export.verify import Verdict
from heads import bundle
from scripts.export import origin, write
from scripts.export.parts import chosen


def asked(run: Path, manifest: dict[str, Any]) -> tuple[list[Check], list[Verdict]]:
    """One that is damaged, or another, is not asked what its heads say."""
    if absent := [stage for stage in manifest["stages"] if not (run / stage / runner.MANIFEST).is_file()]:
        raise ValueError(f"--run {run} is not the run that this was made of: it has no stage {absent[0]}")
    gates = {stage: runner.state(run / stage, thorough=True) for stage in manifest["stages"]}
    if damaged := {stage: state for stage, state in gates.items() if state.startswith("damaged")}:
        return [Check("run", write.listed(damaged), False)], []
    known = {stage: digest[:12] for stage, digest in manifest["stages"].items()}
    found = {stage: runner.read(run / stage)["digest"][:12] for stage in known}
    checks = [agreed("stages", known, found), agreed("passed", manifest["gates"], gates)]
    heads = bundle.load(run, teacher(run / "domain").model)
    entries, rules = program.entries(heads, manifest["room"]), decisions.rules(heads)
    checks.append(agreed("thresholds", named(manifest["decisions"]), named(rules)))
    weights = set().union(*(coreml.built(entry)[1] for entry in entries.values()))
    checks.append(described(weights, set(manifest["weights"])))
    if not checks[-1].passed:
        return checks, []
    features = Features(run / "harvest", "test")
    documents = chosen(features, manifest["room"], manifest["documents"])
    sizes = write.states(features, documents, heads)
    checks.append(folder.close("states", by_name(manifest["states"]), by_name(sizes)))
    return checks, list(origin.compared(heads, features, entries, manifest["room"], documents, rules))


def agreed(name: str, known: Any, found: Any) -> Check:
    wrong = [f"{at} is {now!r} and was {was!r}" for at, was, now in differences(known, found)]
    return Check(name, some(wrong[:1]) + more(wrong) if wrong else "as the run has them", not wrong)


def more(wrong: list[str]) -> str:
    return f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""


def named(rules: dict[str, Any]) -> dict[str, Any]:
    """Concepts by their names, so that it is said which is another."""
    concepts = {f"{n} {of['type']} {of['name']}": of["limit"] for n, of in enumerate(rules["concepts"])}
    return rules | {"concepts": concepts}


def described(run: set[str], export: set[str]) -> Check:
    if run == export:
        return Check("described", f"all {len(run)} weights are the run's", True)
    told = f"{len(run - export)} of the run's {len(run)} weights are not in the export: it was made of another run"
    return Check("described", told, False)


def by_name(states: dict[str, Any]) -> dict[str, float]:
    blocks = {f"block {n}": size for n, size in enumerate(states["blocks"])}
    return blocks | {f"tap {tap}": size for tap, size in states["taps"].items()}
