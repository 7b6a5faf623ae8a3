"""How fast an export's heads are on each compute unit of this Mac, and where each operation runs.

agp bench ane runs/tiny/export
agp bench ane runs/tiny/export --run runs/tiny       beside the same heads in MLX and in numpy

Compiling, loading and the first call apart; then 1,000 calls after 50 that do not count, back to back, and 200 at ten a
second, for an engine that idles is switched off. Power is told where `sudo powermetrics` is allowed without a password.
Elsewhere than on a Mac it says what is to be expected, by what others published.
"""

import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agp.artifacts import RESULTS, write_json, write_results
from scripts.asked import some_path
from scripts.steps import Steps

BACK, PACED = (50, 1000, 0.0), (5, 200, 0.1)
PAGE = "ane.json"  # beside the package, for `agp report`
GOAL = 1.5  # of the chip's floor


def add_arguments(parser) -> None:
    parser.add_argument("export", type=some_path, metavar="EXPORT", help="a folder that `agp export` made")
    parser.add_argument("--run", type=some_path, metavar="RUN", help="the run that it was made of, for MLX and numpy")
    parser.add_argument("--calls", type=int, default=BACK[1], metavar="N", help=f"that are timed ({BACK[1]:,})")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where ane.json goes (default: results/)")


def run(args) -> None:
    from export import device, evaluate, folder, sample

    if args.calls < 1:
        raise ValueError(f"--calls is {args.calls}; 1 or more is needed")
    manifest = folder.whole(args.export)
    if args.run is not None and not (args.run / "calibrate").is_dir():
        raise ValueError(f"--run {args.run} is no whole run; `agp runs` lists those there are")
    if not device.HERE:
        program = evaluate.load(args.export / folder.PACKAGE)
        sizes = dict(sorted(reads(program).items()))
        print(f"{platform.system()} has no Neural Engine to be measured; on a Mac: agp bench ane {args.export}")
        print(expected(sizes))
        return
    parts = sample.load(args.export / folder.SAMPLE)
    feeds = {entry: part.feeds for entry, part in parts.items()}
    found = measured(args.export / folder.PACKAGE, feeds, device.Mac(), args.calls)
    found["rows"] += [] if args.run is None else beside(args.run, manifest, feeds, args.calls)
    write_json(args.export / PAGE, found)
    print(told(found))
    print(write(found, args))


def reads(program: Any) -> dict[str, int]:
    """Bytes of weights that a call of each entry reads."""
    values = lambda function: (of.outputs[0].val for of in function.operations if of.op_type == "const")
    size = lambda of: of.nbytes if isinstance(of, np.ndarray) and of.dtype == np.float16 else 0
    return {entry: sum(map(size, values(function))) for entry, function in program.functions.items()}


def expected(sizes: Mapping[str, int]) -> str:
    from export import floors

    lines = ["estimate, from published floors of a call and rates of reading; nothing was measured here:"]
    lines.append(
        f"{'entry':<14} {'weights':>10} {'chip':<5} {'floor':>9} {'reading':>9} {'a call, direct to Core ML':>26}"
    )
    for entry, size in sizes.items():
        for of in floors.expected(size):
            span = f"{of.low:.2f} to {of.high:.2f} ms"
            row = f"{entry:<14} {size / 1e6:>7.1f} MB {of.chip:<5} {of.floor:>6.3f} ms {of.reading:>6.3f} ms"
            lines.append(f"{row} {span:>26}")
    return "\n".join(lines)


def measured(package: Path, feeds: Mapping[str, Sequence[Any]], machine: Any, calls: int) -> dict[str, Any]:
    from export import floors
    from export.verify import DEVICE

    chip = floors.chip(machine.brand())
    found: dict[str, Any] = {
        "chip": machine.brand(),
        "system": platform.platform(),
        "floor_ms": None if chip is None else chip.floor,
        "rows": [],
        "plans": [],
    }
    with tempfile.TemporaryDirectory() as home:
        steps = Steps(1 + len(feeds) * len(DEVICE))
        with steps("compiling"):
            began = time.perf_counter()
            compiled = machine.compile(package, Path(home))
            found["compile_seconds"] = time.perf_counter() - began
        for entry, given in feeds.items():
            for unit in DEVICE:
                with steps(f"{entry} on {unit}"):
                    found["rows"].append(timed(machine, compiled, entry, unit, given, calls))
                    found["plans"] += [of._asdict() | {"unit": unit} for of in machine.plan(compiled, entry, unit)]
    return found


def timed(machine: Any, compiled: Path, entry: str, unit: str, feeds: Sequence[Any], calls: int) -> dict[str, Any]:
    from export import latency
    from export.latency import Pace, quantiles
    from export.power import Power

    began = time.perf_counter()
    predict = machine.open(compiled, entry, unit)
    loaded = time.perf_counter() - began
    first = latency.first(predict, feeds[0])
    with Power() as power:
        back = latency.steady(predict, feeds, Pace(BACK[0], calls, BACK[2]))
    paced = latency.steady(predict, feeds, Pace(PACED[0], min(PACED[1], calls), PACED[2]))
    return {
        "entry": entry,
        "unit": unit,
        "load_seconds": loaded,
        "first_seconds": first,
        "caller": quantiles(back.caller),
        "framework": quantiles(back.framework),
        "paced_caller": quantiles(paced.caller),
        "paced_framework": quantiles(paced.framework),
        "watts": power.watts,
    }


def beside(run: Path, manifest: Mapping[str, Any], feeds: Mapping[str, Sequence[Any]], calls: int) -> list[dict]:
    """The same heads by MLX, and by numpy."""
    import mlx.core as mx

    from curricula.teacher import teacher
    from export import inmlx, latency, program
    from export.latency import Pace, quantiles
    from export.ops import Plain
    from heads import bundle

    class Called:
        def __init__(self, ask):
            self.ask = ask

        def __call__(self, feed):
            return self.ask(feed)

        def framework(self):
            return None

    entries, rows = program.entries(bundle.load(run, teacher(run / "domain").model), manifest["room"]), []
    for entry, given in feeds.items():
        run_mlx, plain = inmlx.compiled(entries[entry]), entries[entry].describe
        arrays = [{name: mx.array(x.astype(np.float32)) for name, x in feed.items()} for feed in given]
        doubles = [{name: x.astype(np.float64) for name, x in feed.items()} for feed in given]
        sides = {"MLX": (Called(lambda feed, ask=run_mlx: mx.eval(ask(feed))), arrays, calls)}
        sides["numpy"] = (Called(lambda feed, ask=plain: ask(Plain(), feed)), doubles, min(calls, 20))
        for unit, (predict, of, count) in sides.items():
            first = latency.first(predict, of[0])
            back = latency.steady(predict, of, Pace(min(5, count), count))
            rows.append({"entry": entry, "unit": unit, "first_seconds": first, "caller": quantiles(back.caller)})
    return rows


def told(found: Mapping[str, Any]) -> str:
    from export.plan import Planned, elsewhere, shares

    lines = [f"{found['chip']}, {found['system']}; compiled in {found['compile_seconds']:.2f} s"]
    lines.append(
        f"{'entry':<14} {'unit':<12} {'load':>8} {'first':>9} {'p50':>8} {'p95':>8} {'p99':>8}  inside: p50, paced"
    )
    ms = lambda of, name="p50": "-" if not of else f"{of[name]:.3f}"
    for row in found["rows"]:
        load = f"{row['load_seconds']:.2f} s" if "load_seconds" in row else "-"
        caller, inside, paced = row["caller"], row.get("framework"), row.get("paced_framework")
        line = f"{row['entry']:<14} {row['unit']:<12} {load:>8} {1e3 * row['first_seconds']:>6.1f} ms"
        line += "".join(f" {ms(caller, name):>8}" for name in ("p50", "p95", "p99"))
        watts = ", ".join(f"{part} {of:.2f} W" for part, of in row.get("watts", {}).items())
        lines.append(f"{line}  {ms(inside)}, {ms(paced)} ms {watts}")
    for unit in dict.fromkeys(of["unit"] for of in found["plans"]):
        rows = [Planned(*(of[name] for name in Planned._fields)) for of in found["plans"] if of["unit"] == unit]
        split = ", ".join(f"{device} {of['operations']:.1%}" for device, of in shares(rows).items())
        lines.append(f"planned with {unit}: {split} of operations")
        if unit == "CPU_AND_NE":
            for kind, device, count, could in elsewhere(rows)[:8]:
                why = "could run there" if could else "cannot run there"
                lines.append(f"  {count} {kind} on {device}: {why}")
    return "\n".join(lines)


def write(found: Mapping[str, Any], args) -> Path:
    command = f"agp bench ane {args.export.name}"
    engine = {row["entry"]: row["framework"] or row["caller"] for row in found["rows"] if row["unit"] == "CPU_AND_NE"}
    figures = {"ane.p50_ms": {"value": {name: of["p50"] for name, of in engine.items()}, "command": command}}
    if found["floor_ms"]:
        ratio = engine["one"]["p50"] / found["floor_ms"]
        figures["ane.floor_ratio"] = {"value": ratio, "goal": f"<= {GOAL}", "command": command}
    return write_results("ane", figures, folder=args.folder, **found)
