"""Sections about three learned parts: named concepts, what mends a state, and states as bytes."""

from typing import Any

from curricula.report.collect import Run
from curricula.report.page import NONE, Html, folded, joined, said, shaded, spread, table, tag
from curricula.report.plots import LARGE, LOOKS, Series, drawn, legend, look_for, panels, put

NEVER = 1e9  # a threshold that nothing reaches
FAMILIES = {"raw and integers": ("raw", "int"), "one byte": ("one_byte",), "PCA": ("pca_",),
            "PCA that knows the token": ("pca_token",), "learned": ("learned",)}  # fmt: skip


def concepts(run: Run, key: str) -> Html:
    metrics, plots = run.metrics("semantic"), run.stages["semantic"].plots or {}
    head = ("what is measured", "head", "interval", "beside it")
    rows = [
        ("AUROC a concept, mean", said(metrics["auroc"]), spread(metrics["auroc_interval"]),
         f"{said(metrics['probe_auroc'])} by a linear probe"),
        ("variance explained", said(metrics["variance_explained"]), spread(metrics["variance_explained_interval"]),
         f"{said(metrics['pca_variance'])} by PCA, {said(metrics['random_variance'])} at random"),
        ("agreement in place of the state", said(metrics["spliced_agreement"]),
         spread(metrics["spliced_agreement_interval"]),
         f"{said(metrics['pca_agreement'])} by PCA, {said(metrics['random_agreement'])} at random"),
        ("KL in place of the state, nats", said(metrics["spliced_kl"]), spread(metrics["spliced_kl_interval"]), NONE),
        ("active at a position (L0)", said(metrics["l0"]), NONE, NONE),
        ("never active (share)", said(metrics["dead"]), NONE, NONE),
    ]  # fmt: skip
    columns = ("type", "documents", "AUROC", "AUROC by document", "precision", "recall", "threshold")
    named = sorted(plots.get("concepts", []), key=lambda of: (of["type"], of["name"]))
    lines = [(of["name"], *(entry(of, column) for column in columns)) for of in named]
    left = [(of["name"], of["type"], of["documents"]) for of in plots.get("left_out", [])]
    seen = look_for("concepts of few documents, or with an AUROC near a half: their names promise more than they hold.")
    parts = [seen, table(f"The head on states after block {metrics['tap']}", head, rows)]
    parts.append(folded(f"All {len(lines)} concepts", table("Concepts", ("concept", *columns), lines)))
    if left:
        parts.append(
            folded(
                f"{len(left)} left out: too few documents", table("Left out", ("concept", "type", "documents"), left)
            )
        )
    if apart := plots.get("separation"):
        shown = [(name, said(value)) for name, value in apart.items()]
        parts.append(table("Concepts by example: how well held-out examples come apart", ("concept", "AUROC"), shown))
    return joined(parts)


def entry(of: dict[str, Any], column: str) -> str:
    value = of[{"AUROC by document": "documents_auroc"}.get(column, column.lower())]
    return "never" if column == "threshold" and value is not None and value >= NEVER else said(value)


def mixing(run: Run, key: str) -> Html:
    metrics = run.metrics("depth")
    parts = [look_for("weight that moves away from the deepest tap: where it stays, the earlier ones add nothing.")]
    weights: dict[str, dict[str, list[float]]] = (run.stages["depth"].plots or {})["weights"]
    maps = []
    for tap, of in weights.items():
        taps = [other for other in weights if int(other) <= int(tap)]
        rows = [(source, *(shaded(f"{share:.3f}", share) for share in shares)) for source, shares in of.items()]
        maps.append(
            table(
                f"Module at block {tap}: mean weight of taps", ("source", *(f"block {other}" for other in taps)), rows
            )
        )
    rows = [
        (tap, metrics["macs"][tap], f"{metrics['gain'][tap]['value']:+.4f}", spread(metrics["gain"][tap]["interval"]),
         said(metrics["most"][tap]), said(metrics["moves"][tap]))
        for tap in weights
    ]  # fmt: skip
    head = ("block", "MACs", "agreement over the tuned lens", "interval", "largest weight", "moves from token to token")
    cost = tag("p", f"A module costs {metrics['cost']:.4g} of the cheapest block above.")
    return joined(
        [*parts, tag("div", *maps, class_="beside"), cost, table("What each module costs and gains", head, rows)]
    )


def frontier(run: Run, key: str) -> Html:
    found: dict[str, dict[str, Any]] = (run.stages["transfer"].plots or {})["frontier"]
    looks = dict(zip(FAMILIES, LOOKS, strict=False))
    lines = {family: points(found, looks[family], family) for family in FAMILIES}
    lines = {family: of for family, of in lines.items() if of.x}

    def paint(axes) -> None:
        put(axes, lines.values())
        axes.set_xscale("log", base=2)
        ticks = sorted({round(2.0**n) for n in range(13) if min(of["bytes"] for of in found.values()) <= 2**n})
        widest = max(of["bytes"] for of in found.values())
        axes.set_xticks([tick for tick in ticks if tick <= widest][::2], minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(lambda x, at: f"{x:g}")

    told = "; ".join(f"{name} {of['agreement']:.4f} in {of['bytes']:g} bytes" for name, of in found.items())
    plot = drawn(key, "Agreement by bytes of all codecs", told, paint, "bytes a token", "agreement", LARGE)
    rows = [
        (
            name,
            f"{of['bytes']:g}",
            f"{of['agreement']:.4f}",
            spread(of["interval"]),
            said(of["kl"]),
            spread(of["kl_interval"]),
        )
        for name, of in sorted(found.items(), key=lambda pair: (-pair[1]["bytes"], pair[0]))
    ]
    seen = look_for("the learned codecs above and to the left of all others: the same agreement in fewer bytes.")
    head = ("codec", "bytes a token", "agreement", "interval", "KL", "interval of KL")
    metrics = run.metrics("transfer")
    freely = (name.removesuffix("_interval") for name in metrics if name.startswith("greedy"))
    free = [
        f"{name.partition('_agreement_')[2]}: {metrics[name]:.4f} {spread(metrics[f'{name}_interval'])}"
        for name in dict.fromkeys(freely)
    ]
    free = tag("p", f"The share of documents whose 16 free tokens are all the teacher's, {', '.join(free)}.")
    names = {family: of.look for family, of in lines.items()}
    caption = f"Bytes and agreement after block {metrics['tap']}, {metrics['positions']:,} positions of test documents"
    return joined([seen, legend(names), panels(plot), free, table(caption, head, rows)])


def points(found: dict[str, dict[str, Any]], look, family: str) -> Series:
    """Of the codecs whose name begins as those of no later family do."""
    mine = [of for name, of in found.items() if belongs(name) == family]
    mine.sort(key=lambda of: of["bytes"])
    return Series(
        [of["bytes"] for of in mine], [of["agreement"] for of in mine], look, interval=[of["interval"] for of in mine]
    )


def belongs(name: str) -> str | None:
    return next((family for family in reversed(FAMILIES) if name.startswith(FAMILIES[family])), None)
