"""Sections about leaving early: what can be read at each depth, who knows it, at which risk, and what it saves."""

from typing import Any

from curricula.labels import ROUTES
from curricula.report.collect import Run
from curricula.report.page import NONE, Html, joined, said, shaded, spread, table, tag
from curricula.report.plots import LARGE, LOOKS, Series, drawn, legend, look_for, panel, panels, put, whole_numbers
from curricula.report.shortfalls import PUBLIC

LENSES = {"lens": "lens", "tuned_lens": "tuned lens", "agreement": "mended state"}


def lens(run: Run, key: str) -> Html:
    plain = run.metrics("harvest")["lens"]
    taps = [int(tap) for tap in plain["agrees"]]
    lines = {"lens": Series(taps, list(plain["agrees"].values()), LOOKS[0])}
    if run.has("depth"):
        found = run.metrics("depth")
        lines = {
            name: Series(
                taps,
                [of["value"] for of in found[metric].values()],
                look,
                interval=[of["interval"] for of in found[metric].values()],
            )
            for (metric, name), look in zip(LENSES.items(), LOOKS, strict=False)
        }
    ends = [f"{name} from {of.y[0]:.3f} to {of.y[-1]:.3f}" for name, of in lines.items()]

    def paint(axes) -> None:
        put(axes, lines.values())
        axes.set_ylim(0, 1)
        whole_numbers(axes)

    plot = drawn(key, "Agreement with the teacher by depth", f"{'; '.join(ends)}.", paint, "block", "agreement", LARGE)
    head = ("block", "KL, teacher to lens", "vitality", *(f"agreement, {name}" for name in lines))
    rows = [
        (tap, said(kl), said(alive), *(both(of, n) for of in lines.values()))
        for n, (tap, kl, alive) in enumerate(
            zip(plain["agrees"], plain["divergence"].values(), plain["vitality"].values(), strict=True)
        )
    ]
    seen = look_for(
        "the depth from which the lens says what the teacher says, and how far above it the mended state is."
    )
    caption = "At each block, on test documents, with intervals clustered by document"
    return joined(
        [seen, legend({name: of.look for name, of in lines.items()}), panels(plot), table(caption, head, rows)]
    )


def both(of: Series, n: int) -> str:
    return f"{of.y[n]:.4f}" + (f" {spread(of.interval[n])}" if of.interval else "")


def reliability(run: Run, key: str) -> Html:
    found = drawn_by(run, "reliability")
    even = LOOKS[5]

    def plot(tap: str, of: dict[str, Any]) -> Html:
        def paint(axes) -> None:
            put(axes, [Series([0, 1], [0, 1], even, marked=False), Series(of["said"], of["true"], LOOKS[0])])
            axes.set(xlim=(0, 1), ylim=(0, 1))

        told = f"Said and true part by {of['ece']:.4f} on the mean."
        return panel(
            f"block {tap}: ECE {of['ece']:.3f}",
            drawn(
                f"{key}-{tap}",
                f"Reliability at block {tap}",
                told,
                paint,
                "chance that was said",
                "share that was true",
            ),
        )

    seen = look_for(
        "points on the dotted diagonal; below it the head is surer than it should be, and accepts too early."
    )
    names = {"head, bins of equal numbers": LOOKS[0], "as true as was said": even}
    return joined([seen, legend(names), panels(*(plot(tap, of) for tap, of in found.items()))])


def coverage(run: Run, key: str) -> Html:
    found, auroc = drawn_by(run, "risk_coverage"), drawn_by(run, "auroc")
    if not found:
        return tag("p", "At no block has test both states that are sufficient and others: there is nothing to compare.")
    names = list(next(iter(found.values())))
    looks = dict(zip(names, LOOKS, strict=False))

    def plot(tap: str) -> Html:
        def paint(axes) -> None:
            put(
                axes,
                (Series(of["coverage"], of["risk"], looks[name], marked=False) for name, of in found[tap].items()),
            )
            for name, of in found[tap].items():  # a mark now and then: lines that cross stay apart
                put(axes, [Series(of["coverage"][4::9], of["risk"][4::9], looks[name], joined=False)])
            axes.set(xlim=(0, 1), ylim=(0, None))

        told = ", ".join(f"{name} {value:.3f}" for name, value in auroc[tap].items())
        svg = drawn(f"{key}-{tap}", f"Risk by coverage at block {tap}", f"AUROC: {told}.", paint, "coverage", "risk")
        return panel(f"block {tap}", svg)

    seen = look_for(
        "the head's line lowest: of the states it would accept first, the fewest are insufficient. A baseline below it"
        " is simpler and better there, and stands in the list of what falls short."
    )
    rows = [(tap, *(first(value, value == max(of.values())) for value in of.values())) for tap, of in auroc.items()]
    caption = "AUROC of telling sufficient states from others, by block"
    return joined([seen, legend(looks), panels(*map(plot, found)), table(caption, ("block", *names), rows)])


def first(value: float, best: bool) -> Html:
    return tag("td", tag("strong", f"best: {value:.4f}") if best else f"{value:.4f}", class_="number")


def routes(run: Run, key: str) -> Html:
    public = f"The public write-up has a route accuracy of {PUBLIC}, on about 45 examples."
    parts: list[Html] = [
        look_for(
            "counts on the diagonal; what stands below it in the first column was accepted too early, and that is dear."
        ),
        tag("p", public),
    ]
    for stage, when in (
        ("trajectory", "before the depth module is there"),
        ("calibrate", "with the depth module in place"),
    ):
        if run.has(stage):
            parts += [tag("h4", f"{stage}: {when}"), *route(run.metrics(stage), stage)]
    return joined(parts)


def route(metrics: dict[str, Any], stage: str) -> list[Html]:
    right, confusion = metrics["route_accuracy"], metrics["confusion"]
    head = ("what is measured", "value", "interval")
    rows = [
        (
            f"route accuracy (public write-up: {PUBLIC}, about 45 examples; here {sum(map(sum, confusion)):,})",
            f"{right['value']:.4f}",
            spread(right["interval"]),
        ),
        ("macro F1", f"{metrics['macro_f1']['value']:.4f}", spread(metrics["macro_f1"]["interval"])),
        (
            "accepted too early",
            f"{metrics['unsafe_accept_rate']['value']:.4f}",
            spread(metrics["unsafe_accept_rate"]["interval"]),
        ),
        ("mean cost", f"{metrics['mean_cost']:.4f}", NONE),
    ]
    counts = [
        (name, *(shaded(count, count / max(1, sum(row))) for count in row))
        for name, row in zip(ROUTES, confusion, strict=True)
    ]
    cost = [(name, *row) for name, row in zip(ROUTES, metrics["cost"], strict=True)]
    return [
        table(f"Routes of {stage}", head, rows),
        table(f"Confusion of {stage}: true route by row, given route by column", ("true route", *ROUTES), counts),
        table(f"Cost of {stage}: true route by row, given route by column", ("true route", *ROUTES), cost),
    ]


def vitality(run: Run, key: str) -> Html:
    gains = run.metrics("trajectory")["vitality_gains"]

    def plot(tap: str, counts: list[int]) -> Html:
        def paint(axes) -> None:
            axes.bar(
                [(n + 0.5) / len(counts) for n in range(len(counts))], counts, 0.8 / len(counts), color=LOOKS[0].colour
            )
            axes.set_xlim(0, 1)

        told = ", ".join(map(str, counts))
        svg = drawn(f"{key}-{tap}", f"Vitality at block {tap}", f"States in ten bins from 0 to 1: {told}.", paint,
                    "vitality", "states")  # fmt: skip
        return panel(f"block {tap}", svg)

    rows = [(tap, f"{of['value']:+.4f}", spread(of["interval"])) for tap, of in gains.items()]
    seen = look_for(
        "a heap at 1 (the token survives whatever is done to the state) and a tail at 0 (it hardly ever does), and how"
        " both change with depth."
    )
    caption = "Squared error saved beside the lens's confidence"
    figures = panels(*(plot(tap, counts) for tap, counts in drawn_by(run, "vitality").items()))
    return joined([seen, figures, table(caption, ("block", "gain", "interval"), rows)])


def thresholds(run: Run, key: str) -> Html:
    metrics, delta = run.metrics("calibrate"), run.stages["calibrate"].manifest["config"]["delta"]
    rows = [
        (
            f"{kind}, risk at most {alpha}",
            "none keeps it" if of["threshold"] is None else said(of["threshold"]),
            said(of["risk"]),
            f"{of['leaving']:.1%}",
            f"{of['violations']:.3f}",
            f"{spent['value']:.4f} {spread(spent['interval'])}" if kind == "revive" else NONE,
        )
        for kind, risks in metrics["decisions"].items()
        for alpha, of in risks.items()
        for spent in [metrics["macs"][alpha]]
    ]
    head = (
        "decision and certified risk", "threshold", "risk on test", "share leaving", "violations", "MACs of full depth"
    )  # fmt: skip
    exits = ", ".join(map(str, metrics["exits"]))
    told = (
        f"Exits are after block {exits}; {metrics['looked']:.1%} of the tokens are looked at there. A token costs"
        f" {metrics['macs_first']:.4f} of full depth at the first risk, and would cost {metrics['macs_oracle']:.4f} if"
        " all were known beforehand."
    )
    seen = look_for(
        f"risk on test below the certified one, violations of resplits at most {delta:g}, and multiplications (MACs)"
        " below 1: leaving early must pay for the looks it takes."
    )
    return joined([seen, tag("p", told), table("Thresholds by risk", head, rows)])


def drawn_by(run: Run, name: str) -> dict[str, Any]:
    return (run.stages["trajectory"].plots or {})[name]
