"""Where something falls short of its goal, or of the best that is simpler, in words with the numbers."""

from collections.abc import Iterator, Mapping
from typing import Any

from agp.figures import Entry
from curricula import runner
from curricula.report.collect import Run
from curricula.report.page import spread

PUBLIC = 0.8444  # route accuracy by the public write-up, on about 45 examples


def shortfalls(run: Run) -> dict[str, list[str]]:
    """By stage."""
    heads = {
        "trajectory": trajectory,
        "semantic": semantic,
        "depth": depth,
        "transfer": transfer,
        "calibrate": calibrate,
    }
    found = {}
    for name, made in run.stages.items():
        if made.manifest is not None:
            found[name] = list(gates(made.manifest))
            try:
                found[name] += heads[name](made.manifest["metrics"], made.manifest["config"]) if name in heads else []
            except KeyError as e:
                found[name].append(f"Its metrics say nothing of {e}: another AGP made it.")
    return found


def gates(manifest: Mapping[str, Any]) -> Iterator[str]:
    past = manifest["past_gate"]
    for metric, value, goal, open in runner.verdicts(manifest):
        if not open:
            let = f"; somebody let it pass: {past['why']}" if past else "; the run stopped here"
            yield f"{runner.short(metric, value)}, and {goal} was wanted{let}."


def trajectory(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    for tap, which in metrics["one_sided"].items():
        seen = {"all": "every state of test is", "none": "no state of test is"}[which]
        yield f"Block {tap}: {seen} sufficient, so that there is nothing to tell apart, and nothing was compared."
    for tap, best in metrics["best_baseline"].items():
        for name, what in (("auroc", "AUROC"), ("risk_coverage", "area under risk and coverage")):
            if behind := worse(metrics[f"{name}_gain"][tap]):
                yield f"Block {tap}: by {what} the head {behind} {best[name]}, the best baseline there."
    for tap, gain in metrics["vitality_gains"].items():
        if behind := worse(gain):
            yield f"Block {tap}: in telling vitality the head {behind} the lens's confidence."
    yield from routes(metrics)


def semantic(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    pairs = {
        "telling concepts apart (AUROC)": ("auroc", "probe_auroc", "a linear probe a concept"),
        "variance explained": ("variance_explained", "pca_variance", "PCA"),
        "agreement once it stands in for the state": (
            "spliced_agreement",
            "pca_agreement",
            "PCA",
        ),
    }
    for what, (ours, theirs, name) in pairs.items():
        if metrics[ours] is not None and metrics[theirs] is not None and metrics[ours] <= metrics[theirs]:
            yield f"In {what} the head has {metrics[ours]:.4g}, and {name} {metrics[theirs]:.4g}."


def depth(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    for tap, gain in metrics["gain"].items():
        if behind := worse(gain):
            ours, lens = metrics["agreement"][tap]["value"], metrics["tuned_lens"][tap]["value"]
            yield f"Block {tap}: the mended state ({ours:.4f}) {behind} a tuned lens of equal cost ({lens:.4f})."
    if metrics["cost"] >= 1:
        yield f"A module costs {metrics['cost']:.4g} of the cheapest block, no less than running that block."


def transfer(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    table = metrics["baselines"]
    for ratio in config["ratios"]:
        size, ours = f"{ratio}x", metrics[f"next_agreement_{ratio}x"]
        for name, what in (("pca", "PCA"), ("pca_token", "PCA that knows the token")):
            gain = {"value": metrics[f"over_{name}_{size}"], "interval": metrics[f"over_{name}_{size}_interval"]}
            if behind := worse(gain):
                yield f"{size}: in agreement the learned codec ({ours:.4f}) {behind} {what} of equal bytes."
            share, interval = metrics[f"kl_by_{name}_{size}"], metrics[f"kl_by_{name}_{size}_interval"]
            if interval[1] >= 1:
                how = "no less" if share >= 1 else "not surely less"
                yield f"{size}: its KL is {share:.4g} {spread(interval)} times that of {what}, {how}."
        for name, of in table.items():
            if of["bytes"] <= metrics[f"bytes_{size}"] and of["agreement"] > ours and not name.startswith("pca"):
                yield f"{size}: {name} agrees more often ({of['agreement']:.4f}) with no more bytes."


def calibrate(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    for kind, risks in metrics["decisions"].items():
        if none := [alpha for alpha, of in risks.items() if of["threshold"] is None]:
            yield f"No threshold of {kind} keeps the risk at most {' or '.join(none)}, so that none is used."
        for alpha, of in risks.items():
            if of["risk"] > float(alpha):
                yield f"By {kind} at risk {alpha} the test documents met a risk of {of['risk']:.4g}."
            if of["violations"] > config["delta"]:
                broke = f"in {of['violations']:.4g} of the resplits, more often than {config['delta']:.4g}"
                yield f"The promise of {kind} at risk {alpha} broke {broke}."
    for alpha, macs in metrics["macs"].items():
        if macs["interval"][1] >= 1:
            spent = f"{macs['value']:.4f} {spread(macs['interval'])}"
            how = "no less" if macs["value"] >= 1 else "not surely less"
            yield f"At risk {alpha} a token costs {spent} of full depth, checks counted: {how}."
    yield from routes(metrics)


def routes(metrics: Mapping[str, Any]) -> Iterator[str]:
    right = metrics["route_accuracy"]
    if right["value"] < PUBLIC:
        yield (
            f"Routes are right in {right['value']:.4f} {spread(right['interval'])} of all cases, less than"
            f" the {PUBLIC} of the public write-up, which was measured on about 45 examples."
        )


def figures(entries: list[Entry]) -> list[str]:
    return [
        f"{entry.name} is {entry.value:.4g}{'' if entry.interval is None else ' ' + spread(entry.interval)},"
        f" and {entry.goal} was wanted."
        for entry in entries
        if entry.verdict == "missed"
    ]


def worse(gain: Mapping[str, Any]) -> str:
    """In words, where the difference may be nothing or less; empty where it surely is more."""
    if gain["interval"][0] > 0:
        return ""
    told = f"{gain['value']:+.4f} {spread(gain['interval'])}"
    return f"falls ({told}) behind" if gain["value"] < 0 else f"is not surely ({told}) ahead of"
