"""Print every figure in results/ with its goal, value, interval, verdict and the command that makes it.

agp figures
agp figures --check       exit with 1 when a goal is missed
agp figures --only parity
"""

import json
from collections import Counter
from pathlib import Path

from agp.artifacts import RESULTS
from agp.figures import Entry, entries


def add_arguments(parser) -> None:
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the JSON files are (default: results/)")
    parser.add_argument("--only", default="", metavar="PREFIX", help="only figures whose name starts with this")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a goal is missed")


def run(args) -> int:
    known = collect(args.folder)
    found = [entry for entry in known if entry.name.startswith(args.only)]
    if known and not found:
        names = sorted({entry.name.partition(".")[0] for entry in known})
        raise ValueError(f"no figure begins with {args.only!r}; they begin with {', '.join(names)}")
    print(table(found))
    return int(args.check and (not found or any(entry.verdict == "missed" for entry in found)))


def collect(folder: Path) -> list[Entry]:
    """All figures of a folder by name; one figure has one home."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    home: dict[str, Path] = {}
    found = []
    for path in sorted(folder.glob("*.json")):
        for name, figure in read(path).items():
            if name in home:
                raise ValueError(f"figure {name} is in both {home[name].name} and {path.name}")
            home[name] = path
            try:
                found += entries(name, figure)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
    return sorted(found)


def read(path: Path) -> dict[str, dict]:
    try:
        found = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("figures", {}), dict):
        raise ValueError(f"{path} holds no object with figures")
    return found.get("figures", {})


def table(found: list[Entry]) -> str:
    if not found:
        return "no figures yet; `make prove` makes them"
    head = ("figure", "goal", "value", "interval", "verdict", "command")
    rows = [head] + [cells(entry) for entry in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    count = Counter(entry.verdict for entry in found)
    lines += ["", ", ".join(f"{count[verdict]} {verdict}" for verdict in ("met", "missed", "no goal"))]
    if any(entry.proxy for entry in found):
        lines.append("* measured off a Mac")
    return "\n".join(lines)


def cells(entry: Entry) -> tuple[str, ...]:
    interval = f"[{entry.interval[0]:.4g}, {entry.interval[1]:.4g}]" if entry.interval else ""
    value = f"{entry.value:.4g}" + "*" * entry.proxy
    return (entry.name, entry.goal or "", value, interval, entry.verdict, entry.command)
