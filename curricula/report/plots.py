"""Plots as SVG that takes the page's colours, light or dark, and is the same to the byte for the same numbers.

Colours are drawn as numbers and become the page's variables; text stays text. Nothing that comes from a file is drawn
but its numbers: names stand in the page around the plot.
"""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from curricula.report.page import Html, joined, tag

INK, SOFT = "#000010", "#000011"
VARIABLES = {INK: "ink", SOFT: "soft"} | {f"#00002{n}": f"s{n}" for n in range(7)}
WITH: dict[Any, Any] = {
    "svg.hashsalt": "agp",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # matplotlib brings it
    "text.parse_math": False,
    "font.size": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.right": False,
    "grid.color": SOFT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "axes.xmargin": 0.03,
} | dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"), INK)
SMALL, LOW, LARGE = (3.5, 2.4), (3.5, 1.9), (4.6, 2.9)  # inches: letters must be legible where the window is narrow
LEFT, BELOW, BESIDE, ABOVE = 0.56, 0.46, 0.12, 0.1  # inches around what is drawn


class Look(NamedTuple):
    """A series is told from another by its dashes and marks, too."""

    colour: str
    dashes: tuple[float, ...]
    mark: str


LOOKS = [
    Look(f"#00002{n}", dashes, mark)
    for n, (dashes, mark) in enumerate(
        [((), "o"), ((6, 2), "s"), ((2, 1.5), "^"), ((6, 2, 1.5, 2), "D"), ((8, 3), "v"), ((1, 2), "P"), ((4, 1), "X")]
    )
]
MARKS = {  # as they stand in a legend, around (17, 6)
    "o": Html('<circle cx="17" cy="6" r="3"/>'),
    "s": Html('<path d="M14 3h6v6h-6z"/>'),
    "^": Html('<path d="M17 2l4 7h-8z"/>'),
    "D": Html('<path d="M17 2l4 4-4 4-4-4z"/>'),
    "v": Html('<path d="M17 10l4-7h-8z"/>'),
    "P": Html('<path d="M16 2h2v3h3v2h-3v3h-2V7h-3V5h3z"/>'),
    "X": Html('<path d="M15 2l2 2 2-2 2 2-2 2 2 2-2 2-2-2-2 2-2-2 2-2-2-2z"/>'),
}


class Series(NamedTuple):
    x: Sequence[float]
    y: Sequence[float]
    look: Look
    marked: bool = True
    interval: Sequence[Sequence[float]] | None = None  # low, high of each
    joined: bool = True


def drawn(key: str, title: str, told: str, paint: Callable[[Axes], object], x: str, y: str, size=SMALL) -> Html:
    """`title` and `told` are what somebody hears who does not see it; `key` is its alone on the page."""
    with rc_context(WITH):
        width, height = size
        figure = Figure(figsize=size)
        canvas = FigureCanvasSVG(figure)
        axes = figure.add_axes(
            (LEFT / width, BELOW / height, 1 - (LEFT + BESIDE) / width, 1 - (BELOW + ABOVE) / height)
        )
        paint(axes)
        axes.set(xlabel=x, ylabel=y)
        out = io.StringIO()
        canvas.print_svg(out)
    return inlined(out.getvalue(), key, title, told)


def inlined(svg: str, key: str, title: str, told: str) -> Html:
    """Its body as part of a page: names of its own, no date, no style that others would take on."""
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    box, body = (
        re.findall(r'viewBox="([^"]*)"', body)[0],
        re.sub(r"^.*?<svg[^>]*>|</svg>\s*$", "", body, flags=re.DOTALL),
    )
    kept = set(re.findall(r"#([a-z][0-9a-f]{10})\b", body))
    body = re.sub(r' id="([^"]*)"', lambda of: f' id="{key}-{of[1]}"' if of[1] in kept else "", body)
    body = re.sub(r"#([a-z][0-9a-f]{10})\b", rf"#{key}-\1", body).replace("xlink:href", "href")
    body = re.sub(r"#0000[12]\d", lambda of: f"var(--{VARIABLES[of[0]]})", body)
    body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    body = re.sub(r' (d|x|y|transform)="[^"]*"', lambda of: re.sub(r"(\.\d\d)\d+", r"\1", of[0]), body)
    about = [tag("title", title, id=f"{key}-title"), tag("desc", told, id=f"{key}-desc")]
    names = {"role": "img", "aria_labelledby": f"{key}-title {key}-desc", "class_": "plot"}
    return tag("svg", *about, Html(body), viewBox=box, **names)


def panel(caption: str, svg: Html) -> Html:
    return tag("figure", tag("figcaption", caption), svg)


def panels(*figures: Html) -> Html:
    return tag("div", *figures, class_="panels")


def legend(names: Mapping[str, Look]) -> Html:
    return tag("ul", *(tag("li", swatch(look), name) for name, look in names.items()), class_="legend")


def swatch(look: Look) -> Html:
    dashes = " ".join(map(str, look.dashes)) or None
    line = tag("path", d="M0 6h34", stroke_width=2, stroke="currentColor", stroke_dasharray=dashes)
    style = f"color: var(--{VARIABLES[look.colour]})"
    whole = {"viewBox": "0 0 34 12", "width": 34, "height": 12, "fill": "currentColor", "aria_hidden": "true"}
    return tag("svg", line, MARKS[look.mark], style=style, **whole)


def put(axes: Axes, series: Iterable[Series]) -> None:
    for of in series:
        style = {
            "color": of.look.colour,
            "marker": of.look.mark if of.marked else "",
            "linestyle": ((0, of.look.dashes) if of.look.dashes else "-") if of.joined else "",
        }
        if of.interval is None:
            axes.plot(of.x, of.y, **style)
        else:
            ends = zip(of.y, of.interval, strict=True)
            reach = list(zip(*((max(0, y - low), max(0, high - y)) for y, (low, high) in ends), strict=True))
            axes.errorbar(of.x, of.y, yerr=reach, elinewidth=0.9, capsize=2.5, **style)


def whole_numbers(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def look_for(text: str) -> Html:
    return tag("p", joined([tag("strong", "Look for: "), text]), class_="look")
