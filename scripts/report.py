"""One page of what runs and results hold: curves, gates, tables, and where something falls short.

agp report                            all runs in runs/, to runs/report.html
agp report runs/tiny runs/mine --out tiny.html
agp report --folder elsewhere/runs --results results
"""

from collections.abc import Sequence
from pathlib import Path

from agp.artifacts import RESULTS, unwritable, write_bytes
from curricula.report.collect import ABOUT, runs_in
from curricula.report.write import written
from scripts.asked import some_path
from scripts.figures import collect

PAGE = "report.html"


def add_arguments(parser) -> None:
    parser.add_argument(
        "runs", nargs="*", type=some_path, metavar="RUN", help="folders of runs; default: all in --folder"
    )
    parser.add_argument("--folder", type=some_path, default=Path("runs"), metavar="DIR", help="default: runs/")
    parser.add_argument("--results", type=some_path, default=RESULTS, metavar="DIR", help="default: results/")
    parser.add_argument("--out", type=some_path, metavar="FILE", help=f"default: {PAGE} in --folder")


def run(args) -> int:
    for root in args.runs:
        if not (root / ABOUT).exists():
            raise ValueError(f"there is no run in {root}: it has no {ABOUT}; `agp runs` lists those there are")
    roots = args.runs or runs_in(args.folder)
    if not roots:
        raise ValueError(f"there is no run in {args.folder}: `agp train` makes one, --folder DIR says where others are")
    print(f"report: {write(roots, args.out or args.folder / PAGE, args.results)}")
    return 0


def write(roots: Sequence[Path], out: Path, results: Path) -> Path:
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; give the file to write, such as {out / PAGE}")
    if wrong := unwritable(out.parent):
        raise ValueError(f"--out {out}: {wrong}")
    write_bytes(out, written(roots, collect(results)))
    return out
