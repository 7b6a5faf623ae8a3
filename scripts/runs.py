"""Runs and how far they are: which stages are whole, which gates are closed, how long they took.

agp runs
agp runs --folder elsewhere/runs
agp runs --check                  reads every file and compares its digest
"""

import json
from pathlib import Path

from curricula import runner
from curricula.report.collect import ABOUT
from scripts.asked import some_path


def add_arguments(parser) -> None:
    parser.add_argument("--folder", type=some_path, default=Path("runs"), metavar="DIR", help="default: runs/")
    parser.add_argument("--check", action="store_true", help="read all files and compare their digests")


def run(args) -> int:
    found = sorted(path.parent for path in args.folder.glob(f"*/{ABOUT}"))
    if not found:
        print(f"no runs in {args.folder}; `agp train` makes one")
    worst = 0
    for root in found:
        about = json.loads((root / ABOUT).read_text())
        print(f"{root}  ({about['recipe']})")
        for name in about["stages"]:
            said = runner.state(root / name, args.check)
            worst |= "damaged" in said
            print(f"  {name:<12} {said:<30} {runner.took(root / name)}".rstrip())
    return worst
