"""What a run's folder holds, as plain data; what cannot be read is named, and the rest goes on."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from agp.artifacts import digest
from agp.train import METRICS
from curricula import runner

ABOUT, PLOTS, ENGINE = "recipe.json", "plots.json", "export/ane.json"


class Made(NamedTuple):
    """A stage as it stands in its folder."""

    state: str
    manifest: dict[str, Any] | None  # where it is whole
    plots: dict[str, Any] | None
    losses: dict[str, list[dict[str, float]]]  # by the folder below the stage they were written in
    times: dict[str, float] | None


class Run(NamedTuple):
    name: str
    recipe: str
    stages: dict[str, Made]
    damages: list[str]
    engine: dict[str, Any] | None = None  # what was measured of its export on a Mac

    def metrics(self, stage: str) -> dict[str, Any]:
        return self.stages[stage].manifest["metrics"]

    def has(self, stage: str) -> bool:
        return stage in self.stages and self.stages[stage].manifest is not None


def runs_in(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the runs that lie in it."""
    return [folder] if (folder / ABOUT).exists() else sorted(path.parent for path in folder.glob(f"[!.]*/{ABOUT}"))


def run_in(root: Path) -> Run:
    damages: list[str] = []
    about = parsed(root / ABOUT, damages) or {}
    names = about.get("stages")
    if not isinstance(names, list):
        names = sorted(path.parent.name for path in root.glob(f"*/{runner.MANIFEST}"))
    stages = {name: made_in(root / name, damages) for name in map(str, names)}
    engine = parsed(root / ENGINE, damages) if (root / ENGINE).exists() else None
    return Run(root.resolve().name, str(about.get("recipe", "unknown")), stages, damages, engine)


def made_in(out: Path, damages: list[str]) -> Made:
    state = runner.state(out)
    if state.startswith("damaged"):
        damages.append(f"{out.name} is {state}")
    try:
        manifest = runner.read(out) if (out / runner.MANIFEST).exists() else None
    except ValueError:
        manifest, state = None, "damaged"  # named by the state
    plots = drawable(out, manifest, damages) if manifest else None
    written = sorted(out.rglob(METRICS), key=lambda path: counted(path.as_posix()))
    losses = {path.parent.relative_to(out).as_posix(): rows(path, damages) for path in written}
    times = parsed(out / runner.TIMES, damages) if (out / runner.TIMES).exists() else None
    return Made(state.partition(":")[0], manifest, plots, losses, times)


def counted(name: str) -> list[tuple[str, int]]:
    """A key by which 4 comes before 10."""
    return [(part, int(number or 0)) for part, number in re.findall(r"(\D*)(\d*)", name)]


def drawable(out: Path, manifest: dict[str, Any], damages: list[str]) -> dict[str, Any] | None:
    """What plots need, if it is what was written."""
    path, known = out / PLOTS, manifest["files"].get(PLOTS)
    if known is None or not path.exists():
        return None
    if digest(path) != known["sha256"]:
        damages.append(f"{out.name}: {PLOTS} has other bytes than were written, and is not drawn")
        return None
    return parsed(path, damages)


def parsed(path: Path, damages: list[str]) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except OSError as e:
        damages.append(f"{path.parent.name}/{path.name} cannot be read: {e.strerror}")
    except (ValueError, TypeError) as e:
        damages.append(f"{path.parent.name}/{path.name} cannot be read: {e}")
    return None


def rows(path: Path, damages: list[str]) -> list[dict[str, float]]:
    """One line each; a stage that was killed may have left half a line."""
    found = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            row = dict(json.loads(line))
            found.append(row | {"step": int(row["step"])})
        except (ValueError, TypeError, KeyError):
            damages.append(f"{path.parent.name}/{path.name}: line {number} cannot be read")
    return found
