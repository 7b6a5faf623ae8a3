"""A run's frozen heads as a package for the Neural Engine, with the proof that it says what they say.

agp export runs/tiny
agp export runs/tiny --out heads --room 1024
agp export runs/mine --weights int8 palette
agp export runs/mine --past-gates "a demonstration"

The folder holds heads.mlpackage for Core ML, heads.aimodel for Core AI, their manifest (inputs, outputs, thresholds,
names), a card, and a sample of held-out positions on which `agp verify` proves them again, on any machine.
"""

from pathlib import Path

from agp.artifacts import unwritable
from scripts.asked import some_path

DOCUMENTS, ROOM = 24, 512
FEWEST = 3  # texts: of a handful of positions the largest value is no measure of their errors
LARGE = 1 << 20  # what is smaller gains nothing: a call has a floor


def add_arguments(parser) -> None:
    parser.add_argument("run", type=some_path, metavar="RUN", help="a whole run of a recipe")
    parser.add_argument("--out", type=some_path, metavar="DIR", help="a new folder; default: export in RUN")
    parser.add_argument(
        "--room", type=int, default=ROOM, metavar="N", help=f"keys of each kind that depth modules look at ({ROOM})"
    )
    parser.add_argument(
        "--documents", type=int, default=DOCUMENTS, metavar="N", help=f"held-out texts it is proven on ({DOCUMENTS})"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        choices=("int8", "palette"),
        metavar="KIND",
        help="a package beside it whose large weights are int8, or of a palette; its cost stands in the manifest",
    )
    parser.add_argument(
        "--from-bytes", type=int, default=LARGE, metavar="N", help=f"which weights are large ({LARGE:,} bytes)"
    )
    parser.add_argument(
        "--past-gates", metavar="WHY", help="export a run whose gates are not passed; kept in the manifest"
    )


def run(args) -> int:
    out: Path = args.out or args.run / "export"
    if not args.run.is_dir():
        raise ValueError(f"{args.run} is {'a file' if args.run.exists() else 'not there'}; a run's folder is needed")
    if out.exists():
        raise ValueError(f"--out {out} exists already; give a new folder")
    if wrong := unwritable(out.parent):
        raise ValueError(f"--out {out}: {wrong}")
    asked = (("room", args.room, 1), ("documents", args.documents, FEWEST), ("from-bytes", args.from_bytes, 1))
    for name, value, least in asked:
        if value < least:
            raise ValueError(f"--{name} is {value}; {least} or more is needed")
    if args.past_gates is not None and not args.past_gates.strip():
        raise ValueError("--past-gates says no reason; it stands in the manifest and on the card")
    from export import folder, verify  # coremltools takes a second
    from export.compress import Smaller
    from export.cost import told
    from export.folder import CORE_AI, WITHOUT
    from export.lint import POSITIONS
    from scripts.export.write import Asked, write

    if args.room > POSITIONS:
        raise ValueError(f"--room is {args.room:,}; the engine takes {POSITIONS:,} positions at most")
    smaller = [Smaller(kind, args.from_bytes) for kind in dict.fromkeys(args.weights)]
    proof = write(Asked(args.run, args.room, args.documents, args.past_gates, smaller), out)
    for kind, cost in folder.manifest(out)["smaller"].items():
        print(f"{kind:<10} {told(cost)}")
    if not CORE_AI:
        print(f"no heads.aimodel: {WITHOUT}")
    print(verify.told(proof))
    print(out if proof.passed else f"{out} is NOT PROVEN, and is kept to be looked at: ship another")
    return int(not proof.passed)
