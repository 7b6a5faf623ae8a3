"""Sections about a run as a whole: gates, how its parts learned, where time and memory went; and all figures."""

from collections.abc import Sequence
from itertools import groupby

from agp.figures import Entry
from curricula import runner
from curricula.report.collect import Run
from curricula.report.page import NONE, Html, joined, said, spread, table, tag, verdict
from curricula.report.plots import LOOKS, LOW, Series, drawn, legend, look_for, panel, panels, put, whole_numbers

MOST = 200  # points of a line
TRAINING, HELD = LOOKS[5], LOOKS[0]


def gates(run: Run, key: str) -> Html:
    head = ("stage", "state", "metric", "goal", "value", "verdict", "let pass because")
    rows = [row for name in run.stages for row in gate(run, name)]
    seen = look_for("a stage that is whole, with every goal met; one past its gate was let go on by somebody.")
    return joined([seen, table("Every stage and its gate", head, rows)])


def gate(run: Run, name: str) -> list[Sequence]:
    made = run.stages[name]
    if made.manifest is None or not made.manifest["gate"]:
        return [(name, made.state, "no gate" if made.manifest else NONE, NONE, NONE, NONE, NONE)]
    past = made.manifest["past_gate"]
    return [
        (name, made.state, metric, goal, said(value), verdict(met), past["why"] if past and not met else NONE)
        for metric, value, goal, met in runner.verdicts(made.manifest)
    ]


def losses(run: Run, key: str) -> Html:
    curves = {
        stage if folder == "." else f"{stage}/{folder}": rows
        for stage, made in run.stages.items()
        for folder, rows in made.losses.items()
        if rows
    }
    seen = look_for(
        "held-out loss that has stopped falling: a line still going down wants more steps, one that turns up has"
        " learned too long (the best step is kept)."
    )
    figures = [panel(name, curve(rows, f"{key}-{n}", name)) for n, (name, rows) in enumerate(curves.items())]
    return joined([seen, legend({"training": TRAINING, "held out": HELD}), panels(*figures), best(curves)])


def curve(rows: list[dict[str, float]], key: str, name: str) -> Html:
    lines = []
    for kind, look in (("loss", TRAINING), ("held_loss", HELD)):
        points = [(row["step"], row[kind]) for row in rows if kind in row]
        points = points[:: 1 + len(points) // MOST]
        if points:
            x, y = zip(*points, strict=True)
            lines.append(Series(x, y, look, marked=kind != "loss" or len(points) == 1))
    held = [row["held_loss"] for row in rows if "held_loss" in row]
    told = f"Held-out loss goes from {held[0]:.4g} to {held[-1]:.4g}." if held else "No held-out loss was measured."

    def paint(axes) -> None:
        put(axes, lines)
        whole_numbers(axes)

    return drawn(key, f"Loss of {name} by step", told, paint, "step", "loss", LOW)


def best(curves: dict[str, list[dict[str, float]]]) -> Html:
    rows = []
    for name, of in curves.items():
        held = [(row["held_loss"], row["step"]) for row in of if "held_loss" in row]
        if held:
            rows.append((name, held[0][0], min(held)[0], min(held)[1], of[-1]["step"]))
    cells = [(name, said(first), said(least), at, last) for name, first, least, at, last in rows]
    return table("Held-out loss", ("what", "at first", "at best", "best at step", "last step"), cells)


def times(run: Run, key: str) -> Html:
    spent = {name: made.times for name, made in run.stages.items() if made.times}
    whole = sum(of["seconds"] for of in spent.values())
    rows = [
        (name, f"{of['seconds']:.1f}", f"{of['seconds'] / max(whole, 1e-9):.0%}", f"{of['peak_bytes'] / 1e9:.2f}")
        for name, of in spent.items()
    ]
    names = list(spent)
    columns = {
        "seconds": ("Time", [of["seconds"] for of in spent.values()]),
        "GB at the peak": ("Memory", [of["peak_bytes"] / 1e9 for of in spent.values()]),
    }

    def bars(values):
        def paint(axes) -> None:
            axes.barh(range(len(names)), values, color=LOOKS[0].colour, height=0.6)
            axes.set_yticks(range(len(names)), [str(n + 1) for n in range(len(names))])
            axes.invert_yaxis()

        return paint

    figures = [
        panel(
            title,
            drawn(f"{key}-{n}", f"{title} by stage", "As in the table.", bars(values), unit, "stage, by number"),
        )
        for n, (unit, (title, values)) in enumerate(columns.items())
    ]
    numbered = [(f"{n}. {name}", *rest) for n, (name, *rest) in enumerate(rows, 1)]
    seen = look_for("the one stage that takes most: it is where a faster machine, or fewer steps, would be felt.")
    head = ("stage", "seconds", "share of the run", "GB at its peak")
    told = tag("p", f"{whole:,.0f} seconds in all, attempts that were broken off included.")
    return joined([seen, told, panels(*figures), table("Time and memory by stage", head, numbered)])


def figures(entries: list[Entry]) -> Html:
    """By the first part of their names."""
    seen = look_for("missed goals; they stay in the table. A star is a value that was not measured on a Mac.")
    head = ("figure", "goal", "value", "interval", "verdict", "command")
    tables = []
    for topic, of in groupby(entries, key=lambda entry: entry.name.partition(".")[0]):
        rows = [
            (
                entry.name,
                entry.goal or NONE,
                f"{entry.value:.4g}" + "*" * entry.proxy,
                spread(entry.interval),
                verdict(None if entry.goal is None else entry.verdict == "met"),
                tag("code", entry.command, class_="command"),
            )
            for entry in of
        ]
        tables.append(table(f"Figures of {topic}", head, rows))
    return joined([seen, *tables])
