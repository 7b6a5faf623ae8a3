"""Runs and how far they are: which stages are whole, which gates are closed, how long they took.

agp runs                          all in runs/
agp runs runs/tiny elsewhere/runs
agp runs --check                  reads every file and compares its digest
"""

from pathlib import Path

from curricula import runner
from curricula.report.collect import ABOUT, parsed, runs_in
from scripts.asked import all_runs, some_path

USUAL = Path("runs")


def add_arguments(parser) -> None:
    parser.add_argument(
        "where", nargs="*", type=some_path, metavar="DIR", help="a run, or a folder of some; default: runs/"
    )
    parser.add_argument("--check", action="store_true", help="read all files and compare their digests")


def run(args) -> int:
    found, worst = all_runs(args.where) if args.where else runs_in(USUAL), 0
    if not found:
        print("no runs in runs/; `agp train` makes one")
        return 0
    for root in found:
        about = parsed(root / ABOUT, []) or {}
        names = about.get("stages")
        if not isinstance(names, list):
            print(f"{root}  ({ABOUT} is damaged; the same `agp train` writes it again)")
            worst = 1
            continue
        print(f"{root}  ({about.get('recipe')})")
        for name in map(str, names):
            said = runner.state(root / name, args.check)
            worst |= "damaged" in said
            try:
                took = runner.took(root / name)
            except ValueError as e:
                took, worst = str(e), 1
            print(f"  {name:<12} {said:<10}" + (f" ({took})" if took else ""))
    if args.check:
        print("All files were read: " + ("some are damaged" if worst else "each has the digest it was written with"))
    return worst
