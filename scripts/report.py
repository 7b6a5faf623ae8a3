"""One page of what runs and results hold: curves, gates, tables, and where something falls short.

agp report                            all runs in runs/, to runs/report.html
agp report runs/tiny runs/mine --out tiny.html
agp report elsewhere/runs --results elsewhere/results
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from agp.artifacts import RESULTS, unwritable, write_bytes
from curricula.report.collect import run_in
from curricula.report.write import written
from scripts.asked import all_runs, some_path
from scripts.figures import collect
from scripts.runs import USUAL

PAGE = "report.html"


def add_arguments(parser) -> None:
    parser.add_argument(
        "where", nargs="*", type=some_path, metavar="DIR", help="a run, or a folder of some; default: runs/"
    )
    parser.add_argument("--results", type=some_path, default=RESULTS, metavar="DIR", help="default: results/")
    told = f"default: {PAGE} in DIR; of several, in runs/"
    parser.add_argument("--out", type=some_path, metavar="FILE", help=told)


def run(args) -> int:
    where = args.where or [USUAL]
    out = args.out or (where[0] if len(where) == 1 else USUAL) / PAGE
    print(f"report: {write(all_runs(where), out, args.results)}")
    return 0


def write(roots: Sequence[Path], out: Path, results: Path) -> Path:
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; give the file to write, such as {out / PAGE}")
    if wrong := unwritable(out.parent):
        raise ValueError(f"--out {out}: {wrong}")
    write_bytes(out, written(roots, collect(results)))
    for root in roots:
        for damage in run_in(root).damages:
            print(f"{root}: {damage}", file=sys.stderr)
    return out
