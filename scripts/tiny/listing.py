"""Write the committed list of source modules and the held-out text with its licence."""

import platform
import sysconfig
from pathlib import Path

from agp.artifacts import write_json
from curricula import source


def write_listing() -> None:
    parts = source.choose(source.library())
    for kind in ("heldout", "shift"):
        folder = source.HERE / kind
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in parts[kind].items():
            (folder / (name.replace("/", "__") + ".txt")).write_bytes(text.encode())
    licence = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
    (source.HERE / "LICENSE.txt").write_bytes(licence.read_bytes())
    table = {kind: {name: source.digest(text)[:16] for name, text in sorted(parts[kind].items())} for kind in parts}
    write_json(source.LIST, {"python": platform.python_version(), **table})
