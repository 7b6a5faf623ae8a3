"""What the run that an export was made of says of it now."""

from pathlib import Path
from typing import Any

from agp.hosts import differences
from curricula import runner
from curricula.features import Features
from curricula.teacher import teacher
from export import coreml, decisions, program
from export.folder import Check
from export.verify import Verdict
from heads import bundle
from scripts.export import origin
from scripts.export.parts import chosen


def asked(run: Path, manifest: dict[str, Any]) -> tuple[list[Check], list[Verdict]]:
    if absent := [stage for stage in manifest["stages"] if not (run / stage / runner.MANIFEST).is_file()]:
        raise ValueError(f"--run {run} is not the run that this was made of: it has no stage {absent[0]}")
    stages = {stage: runner.read(run / stage)["digest"] for stage in manifest["stages"]}
    heads = bundle.load(run, teacher(run / "domain").model)
    entries, rules = program.entries(heads, manifest["room"]), decisions.rules(heads)
    features = Features(run / "harvest", "test")
    documents = chosen(features, manifest["room"], manifest["documents"])
    weights = set().union(*(coreml.built(entry)[1] for entry in entries.values()))
    other = len(weights.symmetric_difference(manifest["weights"]))
    return [
        agreed("stages", manifest["stages"], stages),
        agreed("thresholds", manifest["decisions"], rules),
        Check("described", f"{other:,} of {len(weights):,} weights are others than the run has", not other),
    ], list(origin.compared(heads, features, entries, manifest["room"], documents, rules))


def agreed(name: str, known: Any, found: Any) -> Check:
    wrong = [f"{at} is {now!r} and was {was!r}" for at, was, now in differences(known, found)]
    return Check(name, wrong[0] if wrong else "as the run has them", not wrong)
