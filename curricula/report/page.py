"""Pieces of HTML in which all text is escaped, and the page around them."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("style.css")
NONE = "–"
NUMBER = re.compile(r"[-+\d.,e%*\[\] ]+")  # an interval, too
LONG = 48  # letters: text that may go over several lines


class Html(str):
    """What is a piece of a page already; any other text is escaped before it becomes one."""


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """`class_` is the attribute class, `aria_label` is aria-label; an attribute that is None is left out."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{words}>{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Html:
    return Html("".join(child if isinstance(child, Html) else escape(str(child)) for child in children))


def said(value: Any) -> str:
    """A number as people read it, or whatever else it is."""
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def spread(interval: Sequence[float] | None) -> str:
    return NONE if interval is None else f"[{interval[0]:.4g}, {interval[1]:.4g}]"


def table(caption: str, head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Html:
    """The first cell of a row says what the row is; one too wide for the window scrolls by itself, by keys too."""
    given = list(rows)
    numbers = [False, *map(numeric, zip(*(row[1:] for row in given), strict=True))] if given else [False] * len(head)
    places = [kind(number) for number in numbers]
    top = [tag("th", name, scope="col", class_=of) for name, of in zip(head, places, strict=True)]
    lines = [[tag("th", row[0], scope="row"), *map(cell, row[1:], places[1:])] for row in given]
    parts = tag("thead", tag("tr", *top)), tag("tbody", *(tag("tr", *line) for line in lines))
    whole = tag("table", tag("caption", caption), *parts)
    return tag("div", whole, class_="wide", role="region", aria_label=caption, tabindex=0)


def numeric(column: Sequence[Any]) -> bool:
    """Whether all of it is numbers, or nothing."""
    texts = [said(value) for value in column if not is_cell(value) and value != NONE]
    return all(map(NUMBER.fullmatch, texts)) and (bool(texts) or any(map(is_cell, column)))


def kind(number: bool) -> str | None:
    return "number" if number else None


def is_cell(value: Any) -> bool:
    return isinstance(value, Html) and value.startswith("<td")


def cell(value: Any, of: str | None) -> Html:
    if is_cell(value):
        return value
    text = value if isinstance(value, Html) else said(value)
    return tag("td", text, class_="long" if len(text) > LONG and not isinstance(text, Html) else of)


def shaded(value: int | str, share: float) -> Html:
    """A number in a cell that is the darker the more it is of all."""
    return tag("td", said(value), class_="number shaded", style=f"--share: {round(100 * share)}%")


def verdict(met: bool | None) -> Html:
    """By a sign and a word, never by colour alone."""
    word = {True: "✓ met", False: "✗ missed", None: "no goal"}[met]
    return tag("span", word, class_={True: "met", False: "missed", None: "none"}[met])


def folded(summary: str, *children: Any) -> Html:
    return tag("details", tag("summary", summary), *children)


def bullets(lines: Iterable[Any]) -> Html:
    return tag("ul", *(tag("li", line) for line in lines))


def section(title: str, key: str, *children: Any, level: int = 3) -> Html:
    return tag("section", tag(f"h{level}", title, id=key), *children, aria_labelledby=key)


def page(title: str, told: str, nav: Html, *children: Any) -> str:
    head = [
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        tag("title", title),
        Html(f"<style>{STYLE.read_text()}</style>"),
    ]
    skip = tag("a", "Skip to the report", href="#report", class_="skip")
    top = tag("header", tag("h1", title), tag("p", told), tag("nav", nav, aria_label="Contents"))
    body = tag("body", skip, top, tag("main", *children, id="report"))
    return "<!doctype html>\n" + tag("html", tag("head", *head), body, lang="en") + "\n"
