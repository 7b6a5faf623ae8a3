"""Ways in which an export is known to go wrong, each planted in one that is right, and what catches it, by name.

What a builder does wrong is built so, and the manifest signed again: digests would else be the only judge.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from curricula.teacher import teacher
from export import blob, coreml, folder, program
from export.ops import Entry
from heads import bundle
from heads.bundle import DECISIONS, Bundle
from scripts.verify import judged


class Planted(NamedTuple):
    where: Path  # a copy of the export, to be spoiled
    run: Path
    heads: Bundle  # loaded for it alone
    room: int


class Trap(NamedTuple):
    name: str
    plant: Callable[[Planted], None]
    catcher: str  # a check or a pair of `agp verify`, or the export's refusal


class Caught(NamedTuple):
    name: str
    catcher: str
    by: list[str]  # all that failed
    told: str

    @property
    def caught(self) -> bool:
        return self.catcher in self.by


def caught(trap: Trap, export: Path, run: Path) -> Caught:
    with TemporaryDirectory() as home:
        given = folder.manifest(export)
        where = Path(home) / "heads"
        shutil.copytree(export, where)
        heads = bundle.load(run, teacher(run / "domain").model)
        try:
            trap.plant(Planted(where, run, heads, given["room"]))
        except ValueError as e:
            return Caught(trap.name, trap.catcher, ["refusal"], str(e))
        proof = judged(where, run if trap.catcher in FROM_RUN else None)
    failed = {of.name: of.told for of in proof.checks if not of.passed}
    failed |= {of.pair: f"{of.worst.entry} {of.worst.name}" for of in proof.verdicts if not of.passed}
    return Caught(trap.name, trap.catcher, list(failed), failed.get(trap.catcher, "nothing"))


def built(given: Planted, change: Callable[[Entry], Entry] = lambda entry: entry) -> None:
    """The package once more, of these heads, as if it were what was meant."""
    entries = {name: change(of) for name, of in program.entries(given.heads, given.room).items()}
    shutil.rmtree(given.where / folder.PACKAGE)
    weights = coreml.save(given.where / folder.PACKAGE, entries, "one")
    signed(given.where, {"weights": sorted(weights), "content": coreml.content(given.where / folder.PACKAGE)})


def signed(where: Path, change: Mapping[str, Any]) -> None:
    folder.write(where, folder.manifest(where) | dict(change))


def large_weight(given: Planted) -> None:
    rows = np.array(given.heads.late.middle)
    rows[0, 0, 0] = 1e5
    given.heads.late.middle = given.heads.plain.middle = mx.array(rows)
    built(given)


def small_eps(given: Planted) -> None:
    for head in given.heads.modules:
        head.eps = 1e-12
    built(given)


def zero_row(given: Planted) -> None:
    """A norm that divides by a root to which nothing was added."""

    def bare(o: Any, x: Any, eps: float) -> Any:
        size = o.reduce("max", o.binary("maximum", x, o.mul(x, -1.0)))
        near = o.binary("div", x, size)
        square = o.mul(o.reduce("sum", o.mul(near, near)), 1 / o.shape(x)[0])
        return o.mul(near, o.unary("exp", o.mul(o.unary("log", square), -0.5)))

    def change(entry: Entry) -> Entry:
        def describe(o: Any, columns: Mapping[str, Any]) -> Any:
            o.norm = lambda x, eps: bare(o, x, eps)
            return entry.describe(o, columns)

        return entry._replace(describe=describe)

    built(given, change)


def large_sums(given: Planted) -> None:
    """Beyond what some chips hold, and less than half precision does; as they are divided after it, no output tells."""
    for head in given.heads.modules:
        head.up.weight, head.down.weight = head.up.weight * LARGER, head.down.weight / LARGER
    built(given)


def transposed(given: Planted) -> None:
    given.heads.late.middle = given.heads.plain.middle = given.heads.late.middle.swapaxes(1, 2)
    built(given)


def swapped(given: Planted) -> None:
    def change(entry: Entry) -> Entry:
        def describe(o: Any, columns: Mapping[str, Any]) -> Any:
            said = dict(entry.describe(o, columns))
            if "leave" in said:
                said["leave"], said["vitality"] = said["vitality"], said["leave"]
            return said

        return entry._replace(describe=describe)

    built(given, change)


def stale(given: Planted) -> None:
    """As it would be of a run that was calibrated again."""
    rules = folder.manifest(given.where)["decisions"]
    limits = [(rules[name], risk) for name in DECISIONS for risk, limit in rules[name].items() if limit is not None]
    held, at = [*limits, *((of, "limit") for of in rules["concepts"])][0]
    held[at] += 0.25
    signed(given.where, {"decisions": rules})


def flipped(given: Planted) -> None:
    path = given.where / folder.PACKAGE / blob.WEIGHTS
    data = bytearray(path.read_bytes())
    data[blob.blobs(given.where / folder.PACKAGE)[0].offset + 1] ^= 0x10
    path.write_bytes(data)


FROM_RUN = ("thresholds",)
LARGER = 1e4  # in the trained tiny model, sums of 4
TRAPS = [
    Trap("a weight of 1e5", large_weight, "refusal"),
    Trap("an eps of 1e-12", small_eps, "lint"),
    Trap("a row of zeros", zero_row, "zeros"),
    Trap("activations of 40,000", large_sums, "ranges"),
    Trap("a transposed weight", transposed, "exact"),
    Trap("a swapped output name", swapped, "exact"),
    Trap("a stale threshold", stale, "thresholds"),
    Trap("a flipped byte of a weight", flipped, "files"),
]
