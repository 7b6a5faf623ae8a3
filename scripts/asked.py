"""What several verbs read from the command line alike."""

from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path

from curricula.report.collect import runs_in


def some_path(given: str) -> Path:
    """A shell variable that is not set would be the folder one is in."""
    if not given.strip():
        raise ArgumentTypeError("a folder is needed, and this is empty")
    return Path(given)


def all_runs(given: Sequence[Path]) -> list[Path]:
    """Folders of runs, and of folders that hold some."""
    found = {folder: runs_in(folder) for folder in given}
    if empty := [str(folder) for folder, runs in found.items() if not runs]:
        raise ValueError(f"there is no run in {', '.join(empty)}; `agp train` makes one, and `agp runs` lists runs/")
    return [run for runs in found.values() for run in runs]


def all_named(given: list[str]) -> dict[str, str]:
    """Sources of rows, as --data names them."""
    pairs = [named(folder) for folder in given]
    if twice := sorted({name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1}):
        raise ValueError(
            f"several sources are called {', '.join(twice)}; give them names of their own: --data NAME=DIR"
        )
    return dict(pairs)


def named(given: str) -> tuple[str, str]:
    name, equals, folder = given.partition("=")
    if not (folder if equals else given):
        raise ValueError(f"--data {given!r} names no folder")
    return (name, folder) if equals else (Path(given).name or "data", given)
