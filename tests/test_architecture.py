"""The walls: who may import whom, which library lives where, how long a file or a function may grow."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "agp": set(),
    "heads": {"agp"},
    "curricula": {"agp", "heads"},
    "export": {"agp", "heads"},
    "scripts": {"agp", "heads", "curricula", "export"},
    "tests": {"agp", "heads", "curricula", "export", "scripts"},
}
TINY = ("scripts/make_tiny.py", "scripts/tiny/")
BENCH = ("scripts/bench",)
LIVES_IN = {  # library: the only places that may import it, besides the tests
    "torch": ("export/", *TINY),
    "coremltools": ("export/",),
    "coreai": ("export/",),
    "transformers": (*TINY, *BENCH),
    "peft": BENCH,
    "matplotlib": ("curricula/report/",),
    "starlette": ("scripts/serve/",),
    "uvicorn": ("scripts/serve/",),
    "fastapi": ("scripts/serve/",),
    "http.server": ("scripts/serve/",),
    "socketserver": ("scripts/serve/",),
    "pytest": (),
}
LONGEST_FILE, LONGEST_FUNCTION = 500, 60

FILES = [path.relative_to(ROOT).as_posix() for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Every module an import names, also in functions and in import_module("..."); relative ones keep their dots."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = "." * node.level + (node.module or "")
            found += [(node.lineno, f"{stem}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.append((node.lineno, node.args[0].value))
    return found


def broken(path: str, source: str) -> list[str]:
    """Every wall the file at `path` (from the root, with slashes) breaks."""
    tree, room = ast.parse(source), path.split("/")[0]
    found = []
    for line, name in imports(tree):
        top = name.split(".")[0]
        if name.startswith("."):
            found.append(f"line {line}: write the import {name} in full")
        elif top in MAY_IMPORT and top not in MAY_IMPORT[room] | {room}:
            found.append(f"line {line}: {room} may not import {top}")
        homes = [LIVES_IN[library] for library in LIVES_IN if f"{name}.".startswith(f"{library}.")]
        if room != "tests" and any(not path.startswith(places) for places in homes):
            found.append(f"line {line}: {top} may not be imported here")
    if (lines := len(source.splitlines())) > LONGEST_FILE:
        found.append(f"{lines} lines, {LONGEST_FILE} is the most")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LONGEST_FUNCTION:
                found.append(f"{node.name} has {length} lines, {LONGEST_FUNCTION} is the most")
    return found


@pytest.mark.parametrize("path", FILES)
def test_every_file_keeps_within_the_walls(path):
    assert broken(path, (ROOT / path).read_text()) == []


def test_no_room_is_forgotten():
    rooms = {
        path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/__init__.py") if ".venv" not in path.parts
    }
    assert rooms == set(MAY_IMPORT)


PLANTED = {
    "the substrate imports a head": ("agp/generate.py", "from heads.bundle import router"),
    "a codec reaches into a head": ("agp/packet.py", "def f():\n    import heads.transfer"),
    "a head imports a stage": ("heads/depth.py", "import curricula.stages"),
    "export imports curricula": ("export/coreml.py", "from curricula import runner"),
    "curricula imports export": ("curricula/runner.py", "from export.coreml import convert"),
    "a stage imports a door": ("curricula/runner.py", "from scripts import cli"),
    "a door imports a test": ("scripts/bench.py", "from tests.toys import toy"),
    "torch in the substrate": ("agp/layers.py", "import torch.nn.functional as F"),
    "torch in another door": ("scripts/train.py", "import torch"),
    "torch by import_module": ("agp/layers.py", "import importlib\nimportlib.import_module('torch.nn')"),
    "coremltools in a door": ("scripts/export.py", "import coremltools as ct"),
    "coreai in a head": ("heads/depth.py", "import coreai"),
    "transformers in the loader": ("agp/models/load.py", "from transformers import AutoTokenizer"),
    "transformers in export": ("export/twins.py", "import transformers"),
    "peft in adapters": ("agp/adapters.py", "from peft import LoraConfig"),
    "matplotlib in a study": ("curricula/studies/plot.py", "from matplotlib import pyplot"),
    "a server in the substrate": ("agp/peer.py", "from starlette.applications import Starlette"),
    "the standard server in a door": ("scripts/generate.py", "from http import server"),
    "a relative import": ("agp/models/load.py", "from .gemma4 import Model"),
    "a long file": ("agp/long.py", "x = 1\n" * 501),
    "a long function": ("agp/long.py", "def f():\n" + "    x = 1\n" * 60),
    "a long method": ("agp/long.py", "class A:\n    async def f(self):\n" + "        x = 1\n" * 60),
}


@pytest.mark.parametrize("path, source", PLANTED.values(), ids=PLANTED)
def test_a_broken_wall_is_seen(path, source):
    assert len(broken(path, source)) == 1


ALLOWED = {
    "a door uses every room": (
        "scripts/train.py",
        "import agp, heads.depth\nfrom curricula import x\nfrom export import y",
    ),
    "torch in export": ("export/twins.py", "import torch"),
    "torch for the tiny models": ("scripts/tiny/pretrain.py", "import torch\nimport transformers"),
    "a judge in a benchmark": ("scripts/bench_decode.py", "import transformers\nimport mlx_lm"),
    "a judge in a test": ("tests/parity/test_x.py", "import torch, transformers, peft, coremltools"),
    "a report draws": ("curricula/report/plot.py", "import matplotlib.pyplot as plt"),
    "a server serves": ("scripts/serve/app.py", "import uvicorn"),
    "names that only begin alike": ("agp/layers.py", "import torchlike, agpx, peftish"),
    "the longest file": ("agp/long.py", "x = 1\n" * 500),
    "the longest function": ("agp/long.py", "def f():\n" + "    x = 1\n" * 59),
}


@pytest.mark.parametrize("path, source", ALLOWED.values(), ids=ALLOWED)
def test_what_the_walls_allow_passes(path, source):
    assert broken(path, source) == []
