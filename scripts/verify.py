"""Whether an export still says what its heads say, on any machine.

agp verify runs/tiny/export
agp verify heads --run runs/tiny      also asks the run: MLX, PyTorch if it is there, thresholds, weights

Digests first; then every weight, read without Apple's tools; then the saved package, computed by numpy on the sample of
held-out positions beside it, exactly and with every result rounded to half precision, and the asset, computed by
Apple's own runtime. One line each, 1 if any fails.
"""

from pathlib import Path

from scripts.asked import some_path


def add_arguments(parser) -> None:
    parser.add_argument("export", type=some_path, metavar="EXPORT", help="a folder that `agp export` made")
    parser.add_argument("--run", type=some_path, metavar="RUN", help="the run that it was made of")


def run(args) -> int:
    from export import folder, judges, sample, verify  # coremltools takes a second
    from export.ranges import Seen
    from scripts.export import again

    where: Path = args.export
    given = folder.manifest(where)
    checks = folder.checks(where, given)
    parts, rules = sample.load(where / folder.SAMPLE), given["decisions"]
    verdicts = []
    if args.run is not None:
        more, verdicts = again.asked(args.run, given)
        checks += more
    verdicts += judges.saved(where, parts, rules, Seen())
    for of in checks:
        print(f"{of.name:<10} {of.told}: {'ok' if of.passed else 'FAIL'}")
    print(verify.table(verdicts))
    return int(not all(of.passed for of in [*checks, *verdicts]))
