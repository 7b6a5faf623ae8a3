"""What would keep an export's operations off the Neural Engine, each with the fix.

agp lint runs/tiny/export
agp lint anything.mlpackage

1 if something fails; what is only worth knowing does not. Where operations really run, `agp bench ane` tells on a Mac.
"""

from pathlib import Path

from scripts.asked import some_path


def add_arguments(parser) -> None:
    parser.add_argument("export", type=some_path, metavar="EXPORT", help="an export's folder, or a package")


def run(args) -> int:
    from export import evaluate, folder, lint  # coremltools takes a second

    where: Path = args.export
    package = where if where.suffix == ".mlpackage" else where / folder.PACKAGE
    if not (package / folder.coreml.MODEL).is_file():
        raise ValueError(f"{where} is no package, and holds no {folder.PACKAGE}; `agp export RUN` makes one")
    found = lint.lint(evaluate.load(package))
    for of in found:
        print(f"{'FAIL' if of.fails else 'note'}  {of.rule}: {of.entry}: {of.what}. {of.fix}")
    failed = sum(of.fails for of in found)
    print(f"{failed} to be mended, {len(found) - failed} worth knowing")
    return int(failed > 0)
