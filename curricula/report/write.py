"""The page: runs one after another, each with what falls short first, then the figures of results/."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from agp.figures import Entry
from curricula import runner
from curricula.report import early, engine, parts, shortfalls, whole
from curricula.report.collect import Run, run_in
from curricula.report.page import Html, bullets, joined, page, section, tag


class Section(NamedTuple):
    title: str
    key: str
    stage: str | None  # that it is about
    drawn: bool  # whether it needs what the stage left to be drawn
    of: Callable[[Run, str], Html | None]  # None: there is nothing to be told


SECTIONS = (
    Section("Gates", "gates", None, False, whole.gates),
    Section("How the parts learned", "losses", None, False, whole.losses),
    Section("What can be read at each depth", "lens", "harvest", False, early.lens),
    Section("Reliability", "reliability", "trajectory", True, early.reliability),
    Section("Risk and coverage", "coverage", "trajectory", True, early.coverage),
    Section("Routes: confusion and cost", "routes", "trajectory", False, early.routes),
    Section("Vitality", "vitality", "trajectory", True, early.vitality),
    Section("Concepts", "concepts", "semantic", True, parts.concepts),
    Section("Depth mixing", "mixing", "depth", True, parts.mixing),
    Section("Bytes against agreement", "frontier", "transfer", True, parts.frontier),
    Section("Thresholds by risk", "thresholds", "calibrate", False, early.thresholds),
    Section("On the Neural Engine", "engine", None, False, engine.engine),
    Section("Where time and memory went", "times", None, False, whole.times),
)
FIGURES = "Figures in results/"


def written(roots: Sequence[Path], entries: Sequence[Entry]) -> bytes:
    """The page of these runs and figures."""
    found = [(f"run{n}", run_in(root)) for n, root in enumerate(roots, 1)]
    bodies, links = [], []
    for key, run in found:
        shown, missing = sections(run, key)
        title = f"Run {run.name}"
        bodies.append(section(title, key, opening(run, key, missing), *shown.values(), level=2))
        inside = [link(f"{key}-{of.key}", of.title) for of in SECTIONS if of.key in shown]
        links.append(joined([link(key, title), bullets([link(f"{key}-short", "What falls short"), *inside])]))
    entries = sorted(entries)
    if entries:
        bodies.append(section(FIGURES, "figures", results(entries), level=2))
        links.append(link("figures", FIGURES))
    told = "What runs and results hold, made by agp report: the same files give the same page, to the byte."
    return page("AGP report", told, bullets(links), *bodies).encode("utf-8", "replace")


def link(key: str, text: str) -> Html:
    return tag("a", text, href=f"#{key}")


def sections(run: Run, key: str) -> tuple[dict[str, Html], dict[str, str]]:
    """Those that can be written, and why the others are not."""
    shown, missing = {}, {}
    for of in SECTIONS:
        if why := lacking(run, of):
            missing[of.title] = why
            continue
        name = f"{key}-{of.key}"
        try:
            if (body := of.of(run, f"{name}-plot")) is not None:
                shown[of.key] = section(of.title, name, body)
        except KeyError as e:
            missing[of.title] = f"{of.stage or 'what was measured'} says nothing of {e}: another AGP made it"
    return shown, missing


def lacking(run: Run, of: Section) -> str | None:
    if of.stage is None:
        return None
    if of.stage not in run.stages:
        return f"the run has no stage {of.stage}"
    made = run.stages[of.stage]
    if made.manifest is None:
        return f"{of.stage} is {made.state}"
    return f"{of.stage} has no {runner.MANIFEST} with plots" if of.drawn and made.plots is None else None


def opening(run: Run, key: str, missing: dict[str, str]) -> Html:
    """What somebody who reads no further should know."""
    gated = [made.manifest for made in run.stages.values() if made.manifest and made.manifest["gate"]]
    met = [open for manifest in gated for *_, open in runner.verdicts(manifest)]
    whole = sum(made.manifest is not None for made in run.stages.values())
    told = (
        f"Recipe {run.recipe}: {whole} of {len(run.stages)} stages are whole, {sum(met)} of {len(met)} goals are met."
    )
    lines: list[Html] = [tag("p", told)]
    if run.damages:
        lines += [tag("p", "✗ Damaged, and left out or not to be relied on:", class_="missed"), bullets(run.damages)]
    if missing:
        lines += [tag("p", "Not on this page:"), bullets(f"{title}: {why}." for title, why in missing.items())]
    short = shortfalls.shortfalls(run)
    stages = [joined([tag("strong", stage), bullets(of)]) for stage, of in short.items() if of]
    body = bullets(stages) if stages else tag("p", "Nothing that was measured falls short of a goal or of a baseline.")
    return joined([*lines, section("What falls short", f"{key}-short", body)])


def results(entries: list[Entry]) -> Html:
    short = shortfalls.figures(entries)
    told = bullets(short) if short else tag("p", "No goal is missed.")
    return joined([tag("h3", "Goals that are missed"), told, tag("h3", "All figures"), whole.figures(entries)])
