"""What `agp bench ane` measured of a run's export on a Mac: times by compute unit, and where operations run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from curricula.report.collect import Run
from curricula.report.page import NONE, Html, joined, table, tag
from curricula.report.plots import LOOKS, drawn, look_for, panel, panels


def engine(run: Run, key: str) -> Html | None:
    found = run.engine
    if found is None:
        return None
    floor = found["floor_ms"]
    seen = look_for(
        "the entry for 64 positions on CPU_AND_NE: it is what the engine is for. One position, the CPU may win."
    )
    told = f"{found['chip']}, {found['system']}; compiled in {found['compile_seconds']:.2f} s."
    told += "" if floor is None else f" A call that does nothing takes {floor:.3f} ms on this chip, as published."
    entries = list(dict.fromkeys(row["entry"] for row in found["rows"]))
    plots = [bars(f"{key}-{n}", entry, of_entry(found["rows"], entry)) for n, entry in enumerate(entries)]
    return joined([seen, tag("p", told), panels(*plots), times(found["rows"]), plan(found["plans"])])


def of_entry(rows: Sequence[Mapping[str, Any]], entry: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["entry"] == entry]


def bars(key: str, entry: str, rows: list[Mapping[str, Any]]) -> Html:
    def paint(axes) -> None:
        axes.barh(range(len(rows)), [row["caller"]["p50"] for row in rows], color=LOOKS[0].colour, height=0.6)
        axes.set_yticks(range(len(rows)), [str(n + 1) for n in range(len(rows))])
        axes.invert_yaxis()

    told = ", ".join(f"{n}. {row['unit']} {row['caller']['p50']:.3f} ms" for n, row in enumerate(rows, 1))
    return panel(entry, drawn(key, f"Median call of {entry} by unit", told, paint, "ms", "unit, by number"))


def times(rows: Sequence[Mapping[str, Any]]) -> Html:
    ms = lambda of, name="p50": NONE if not of else f"{of[name]:.3f}"
    numbers: Counter[str] = Counter()
    cells = []
    for row in rows:
        numbers[row["entry"]] += 1
        load = f"{row['load_seconds']:.2f}" if "load_seconds" in row else NONE
        caller = [ms(row["caller"], name) for name in ("p50", "p95", "p99")]
        inside = [ms(row.get("framework")), ms(row.get("paced_caller"))]
        name = f"{row['entry']}: {numbers[row['entry']]}. {row['unit']}"
        cells.append((name, load, f"{1e3 * row['first_seconds']:.1f}", *caller, *inside))
    head = ("entry and unit", "load, s", "first, ms", "p50, ms", "p95", "p99", "p50 inside", "p50 at ten a second")
    return table("Calls", head, cells)


def plan(plans: Sequence[Mapping[str, Any]]) -> Html:
    count = Counter((of["unit"], of["entry"], of["preferred"]) for of in plans)
    cells = [(f"{unit}, {entry}", device, number) for (unit, entry, device), number in count.items()]
    away = Counter(
        (of["type"], of["preferred"], "NE" in of["supported"])
        for of in plans
        if of["unit"] == "CPU_AND_NE" and of["preferred"] != "NE"
    )
    others = [(kind, device, n, "yes" if could else "no") for (kind, device, could), n in away.most_common()]
    return joined(
        [
            table(
                "Operations by the device that is planned for them", ("unit and entry", "device", "operations"), cells
            ),
            table(
                "With CPU_AND_NE, what is not for the engine",
                ("operation", "device", "how many", "could the engine"),
                others,
            ),
        ]
    )
