"""What several verbs read from the command line alike."""

from pathlib import Path


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
