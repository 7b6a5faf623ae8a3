"""`--heads coreml`: a run's heads said by what `agp export` made of them, instead of by MLX."""

import atexit
import platform
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from agp.models.tensors import some
from curricula import runner
from scripts import routes
from scripts.asked import some_path
from scripts.routes import MOST, Opened

HEADS = ("mlx", "coreml")
UNIT, OLDEST = "CPU_AND_NE", 15  # of macOS: before, a package has one entry


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--heads", choices=HEADS, default="mlx", help="who computes a run's heads (default: mlx)")
    parser.add_argument(
        "--export", type=some_path, metavar="DIR", help="of --heads coreml: what `agp export` made; default: RUN/export"
    )


def faults(args: Namespace) -> list[str]:
    wrong = []
    if args.heads != "mlx" and args.run is None:
        wrong.append(f"--heads {args.heads} needs the heads of a run; give --run instead of --model")
    if args.heads == "mlx" and args.export is not None:
        wrong.append("--export is for --heads coreml")
    return wrong


def opened(args: Namespace, **more: Any) -> Opened:
    """`more` is what opens a run beside its heads."""
    if args.heads == "mlx":
        return routes.opened(args.run, **more)
    routes.whole(args.run)
    where = args.run / "export" if args.export is None else args.export
    manifest = belonging(where, args.run)  # before a model is read, which may take minutes
    given = routes.opened(args.run, **more)
    from export.asking import Package  # coremltools takes a second

    say, how = saying(where)
    print(f"heads: {where}, {how}", file=sys.stderr, flush=True)
    by = Package(given.heads, say, manifest["inputs"]["one"])
    return given._replace(heads=given.heads._replace(by=by, room=manifest["room"] - MOST))


def belonging(where: Path, run: Path) -> dict[str, Any]:
    """The manifest of an export that is whole, and of this run as it is."""
    if find_spec("coremltools") is None:
        raise ValueError("--heads coreml reads the export with coremltools, which is not installed here; use mlx")
    if sys.platform == "darwin" and int(platform.mac_ver()[0].partition(".")[0]) < OLDEST:
        raise ValueError(f"--heads coreml needs macOS {OLDEST}, and this is {platform.mac_ver()[0]}; use mlx")
    from export import folder

    if not (where / folder.MANIFEST).is_file():
        out = "" if where == run / "export" else f" --out {where}"
        raise ValueError(f"--heads coreml: there is no export at {where}; `agp export {run}{out}` makes one")
    manifest = folder.whole(where)
    if odd := others(run, manifest["stages"]):
        raise ValueError(f"{where} was not made of {run} as it is: {some(odd)}; `agp export {run} --out DIR` makes one")
    return manifest


def others(run: Path, known: Mapping[str, str]) -> list[str]:
    """Stages that are not those which were exported."""
    there = {stage: runner.read(run / stage)["digest"] for stage in known if (run / stage / runner.MANIFEST).is_file()}
    wrong = [f"{stage} is {'another' if stage in there else 'not there'}" for stage in known]
    return [told for stage, told in zip(known, wrong, strict=True) if there.get(stage) != known[stage]]


def saying(where: Path) -> tuple[Any, str]:
    """Who says what the entry for one token says; and how, in words."""
    from export import device, evaluate, folder

    if not device.HERE:
        program = evaluate.load(where / folder.PACKAGE)
        how = "by numpy in half precision, as the Neural Engine is said to compute: slow; Core ML is there on a Mac"
        return partial(evaluate.run, program, "one", exact=False), how
    machine, home = device.Mac(), TemporaryDirectory()
    atexit.register(home.cleanup)  # what was compiled is read as long as it is asked
    compiled = machine.compile(where / folder.PACKAGE, Path(home.name))
    return machine.open(compiled, "one", UNIT), "by Core ML, on the CPU and the Neural Engine"


def fits(args: Namespace, given: Opened, prompt: int) -> None:
    """Raises where the text would be longer than the heads take."""
    room, more = given.heads.room, args.max_tokens
    length = min(prompt + more - 1, given.loaded.config.max_position_embeddings)  # the last token is not asked about
    if args.mode != "full" and room is not None and length > room:
        raise ValueError(
            f"the prompt has {prompt} tokens and {more} may follow; the export takes texts of {room + 1}: give fewer "
            f"--max-tokens, or export the run again: `agp export {args.run} --room {length + MOST} --out DIR`"
        )
