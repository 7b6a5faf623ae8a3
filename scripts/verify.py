"""Whether an export still says what its heads say, on any machine.

agp verify runs/tiny/export
agp verify heads --run runs/tiny      also asks the run: MLX, PyTorch if it is there, thresholds, weights

Digests first, and where they fail nothing else; then every weight, read without Apple's tools; then the saved package,
computed by numpy on the sample of held-out positions beside it, exactly and with every result rounded to half
precision, and the asset, computed by Apple's own runtime. One line each, and one that sums them up; 1 if any fails.
"""

from pathlib import Path
from typing import Any

from scripts.asked import some_path


def add_arguments(parser) -> None:
    parser.add_argument("export", type=some_path, metavar="EXPORT", help="a folder that `agp export` made")
    parser.add_argument("--run", type=some_path, metavar="RUN", help="the run that it was made of")


def run(args) -> int:
    from export import verify  # coremltools takes a second

    proof = judged(args.export, args.run)
    print(verify.told(proof))
    return int(not proof.passed)


def judged(where: Path, run: Path | None) -> Any:
    from export import cost, device, evaluate, folder, judges, sample, verify
    from export.ranges import Seen
    from export.verify import Proof
    from scripts.export import again
    from scripts.steps import Steps

    given, seen, verdicts = folder.manifest(where), Seen(), []
    asset, units = given["asset"] is not None and folder.CORE_AI, len(verify.DEVICE) if device.HERE else 0
    steps = Steps(4 + len(given["smaller"]) + (run is not None) + asset + units)
    with steps("digests"):
        checks = [folder.files(where, given)]
        if checks[0].passed:
            checks += folder.checks(where, given)
    if not all(of.passed for of in checks):
        return Proof(checks, [])
    parts, program = sample.load(where / folder.SAMPLE), evaluate.load(where / folder.PACKAGE)
    checks += [judges.stated(given, program), folder.gates(given)]
    if not all(of.passed for of in checks):
        return Proof(checks, [])
    if run is not None:
        with steps("the run"):
            more, verdicts = again.asked(run, given)
            checks += more
    verdicts += steps.each("what is saved", judges.saved(where, program, parts, given["decisions"], seen, asset))
    with steps("each operation"):
        checks += [
            *judges.checks(program, parts, given["inputs"], seen),
            folder.close("largest", given["largest"], seen.largest),
        ]
    checks += steps.each("smaller weights", (cost.checked(where, given, parts, kind) for kind in given["smaller"]))
    return Proof(checks, verdicts)
