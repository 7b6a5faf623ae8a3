"""What an export is worth: the worst output of whole runs in every arithmetic, all known traps, and real sizes.

agp bench export
agp bench export --runs runs/tiny runs/tiny3n

Each run is exported anew and proven; into the first every known trap is planted; then heads of Gemma 4 E2B's and Gemma
3n E2B's size, of random weights, with a dictionary of 16,384, go all the way, each in a process of its own.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from agp.artifacts import RESULTS, write_results
from scripts.asked import some_path

COMMAND = "agp bench export"
ROOM, DOCUMENTS, FEW = 128, 24, 3
REAL = ("gemma4_e2b", "gemma3n_e2b")


def add_arguments(parser) -> None:
    usual = [Path("runs/tiny"), Path("runs/tiny3n")]
    parser.add_argument("--runs", nargs="+", type=some_path, default=usual, metavar="RUN", help="finished runs")
    parser.add_argument("--real", choices=REAL, help="only heads of that model's size, and print JSON")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where export.json goes (default: results/)")


def run(args) -> None:
    if args.real:
        from scripts.bench.export_real import proven

        print(json.dumps(proven(args.real)))
        return
    from scripts.export.write import passed

    for root in args.runs:
        passed(asked(root, DOCUMENTS))
    with tempfile.TemporaryDirectory(prefix="agp-export-") as home:
        runs = {root.name: exported(root, Path(home) / root.name) for root in args.runs}
        traps = planted(args.runs[0], Path(home) / "few")
    real = {recipe: apart(recipe) for recipe in REAL}
    for recipe, of in real.items():
        print(f"{recipe:<12} {sum(of['seconds'].values()):.0f} s, {of['peak_bytes'] / 1e9:.1f} GB at its peak")
    print(write(runs, traps, real, args.folder))


def asked(root: Path, documents: int) -> Any:
    from scripts.export.write import Asked

    return Asked(root, ROOM, documents, None, [])


def exported(root: Path, out: Path) -> dict[str, Any]:
    from export import folder, verify
    from scripts.export.write import write

    proof = write(asked(root, DOCUMENTS), out)
    print(f"{root}\n{verify.told(proof)}", flush=True)
    pairs = {of.pair: of for of in proof.verdicts}
    return verify.as_json(proof) | {
        "psnr_fp16": pairs["half"].worst.psnr,
        "coreai_error": pairs["coreai"].worst.error,
        "decision_changes": sum(kind.unexplained for of in proof.verdicts for kind in of.changes.values()),
        **{name: folder.manifest(out)[name] for name in ("content", "states", "largest")},
    }


def planted(root: Path, out: Path) -> list[dict[str, Any]]:
    from scripts.export.traps import TRAPS, caught
    from scripts.export.write import write

    write(asked(root, FEW), out)
    found = []
    for trap in TRAPS:
        of = caught(trap, out, root)
        print(f"{of.name:<28} {of.catcher:<11} {'caught' if of.caught else 'MISSED'}: {of.told}", flush=True)
        found.append(of._asdict() | {"caught": of.caught})
    return found


def apart(recipe: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "scripts.cli", "bench", "export", "--real", recipe]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def write(runs: dict[str, Any], traps: list[dict[str, Any]], real: dict[str, Any], folder: Path) -> Path:
    of = lambda name: {run: told[name] for run, told in runs.items()}
    figures = {
        "export.psnr_fp16": {"value": of("psnr_fp16"), "goal": ">= 60"},
        "export.coreai_error": {"value": of("coreai_error"), "goal": "<= 1e-6"},
        "export.decision_changes": {"value": of("decision_changes"), "goal": "<= 0"},
        "export.traps_caught": {"value": sum(one["caught"] for one in traps), "goal": f">= {len(traps)}"},
        "export.real_size_seconds": {"value": {recipe: sum(one["seconds"].values()) for recipe, one in real.items()}},
    }
    figures = {name: figure | {"command": COMMAND} for name, figure in figures.items()}
    return write_results("export", figures, folder=folder, runs=runs, traps=traps, real=real)
