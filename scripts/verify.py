"""Whether an export still says what its heads say, on any machine.

agp verify runs/tiny/export
agp verify heads --run runs/tiny      also asks the run: MLX, PyTorch if it is there, thresholds, weights

Digests first; then every weight, read without Apple's tools; then the saved package, computed by numpy on the sample of
held-out positions beside it, exactly and with every result rounded to half precision, and the asset, computed by
Apple's own runtime. One line each, 1 if any fails.
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

    given, seen, checks, verdicts = folder.manifest(where), Seen(), [], []
    units = len(verify.DEVICE) if device.HERE else 0
    steps = Steps(
        4 + len(given["smaller"]) + (run is not None) + (given["asset"] is not None and folder.CORE_AI) + units
    )
    with steps("digests"):
        checks += folder.checks(where, given)
    if run is not None:
        with steps("the run"):
            more, verdicts = again.asked(run, given)
            checks += more
    parts, program = sample.load(where / folder.SAMPLE), evaluate.load(where / folder.PACKAGE)
    verdicts += steps.each("what is saved", judges.saved(where, program, parts, given["decisions"], seen))
    with steps("each operation"):
        checks += judges.checks(program, parts, given["inputs"], seen)
    checks += steps.each("smaller weights", (cost.checked(where, given, parts, kind) for kind in given["smaller"]))
    return Proof(checks, verdicts)
