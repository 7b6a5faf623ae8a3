"""The trajectory head against all that is simpler: thresholds on the lens, probes, one answer for all."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from agp.models.decoder import Decoder
from curricula.clustered import auroc, auroc_of, clusters, coverage_area_of, mean, resampled
from curricula.exchange import by_hosts
from curricula.features import Features
from curricula.labels import ACCEPT, ROUTES
from curricula.positions import chunks, normed
from curricula.probe import crossed, probe
from heads.trajectory import Told

BINS, POINTS = 15, 40
COST = ((0, 1, 2, 2), (10, 0, 1, 1), (10, 1, 0, 1), (10, 1, 1, 0))  # true route by row: accepting too early is dear
COMPARED = ("auroc", "auroc_gain", "risk_coverage_gain", "best_baseline")


def measured(
    decoder: Decoder,
    found: Mapping[str, Features],
    enough: Mapping[str, np.ndarray],
    clear: float,
    route: np.ndarray,
    said: Told,
    group: Any = None,
) -> tuple[dict, dict]:
    """Metrics, and what plots need; all of it on `test`, whose true `route` this is, and what the head `said`.

    A first choice that is ahead by `clear` is ahead enough: so the labels say, and so the probes are told.
    """
    test, taps = found["test"], found["test"].taps
    cluster = clusters(test)
    chance, sure = accepting(said.route)
    others = simpler(decoder, found, enough, clear, group)
    metrics: dict[str, Any] = {name: {} for name in (*COMPARED, "one_sided")}
    plots: dict[str, Any] = {"risk_coverage": {}, "auroc": {}, "reliability": {}}
    for t, tap in enumerate(map(str, taps)):
        true = enough["test"][:, t]
        plots["reliability"][tap] = reliability(chance[:, t], true)
        if true.all() or not true.any():  # nothing to tell apart
            metrics["one_sided"][tap] = "all" if true.all() else "none"
            continue
        scores = {"head": sure[:, t]} | {name: of[:, t] for name, of in others.items()}
        for name, of in compared(scores, true, cluster).items():
            metrics[name][tap] = of
        plots["auroc"][tap] = {name: round(auroc(score, true), 4) for name, score in scores.items()}
        plots["risk_coverage"][tap] = {name: curve(score, ~true) for name, score in scores.items()}
    gained = metrics["auroc_gain"].values()
    metrics["auroc_worst"] = min((of["value"] for of in metrics["auroc"].values()), default=None)
    metrics["auroc_gain_least"] = min((of["value"] for of in gained), default=None)
    metrics["auroc_gain_surely"] = min((of["interval"][0] for of in gained), default=None)
    more, drawn = vitality(found, said, clear, group), routes(said.route.argmax(-1), route, cluster)
    return metrics | more[0] | drawn, plots | more[1]


def compared(scores: Mapping[str, np.ndarray], true: np.ndarray, cluster: np.ndarray) -> dict[str, Any]:
    """The head at one tap with the best of the others there."""
    found_auroc = {name: auroc_of(score, true) for name, score in scores.items()}
    found_area = {name: coverage_area_of(score, ~true) for name, score in scores.items()}
    ones, others = np.ones(len(true)), [name for name in scores if name != "head"]
    worth = {name: of(ones) for name, of in found_auroc.items()}
    areas = {name: of(ones) for name, of in found_area.items()}
    best, least = max(others, key=worth.__getitem__), min(others, key=areas.__getitem__)
    gained = resampled(lambda w: found_auroc["head"](w) - found_auroc[best](w), cluster)
    saved = resampled(lambda w: found_area[least](w) - found_area["head"](w), cluster)
    return {
        "auroc": estimate(resampled(found_auroc["head"], cluster)),
        "auroc_gain": estimate(gained),
        "risk_coverage_gain": estimate(saved),
        "best_baseline": {"auroc": best, "risk_coverage": least},
    }


def accepting(route: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """N T, of the logits of all routes: the chance that the first is right, and its log-odds."""
    others = np.logaddexp.reduce(np.delete(route, ACCEPT, axis=-1), axis=-1)
    sure = route[..., ACCEPT] - others
    return 1 / (1 + np.exp(-sure)), sure


def simpler(
    decoder: Decoder,
    found: Mapping[str, Features],
    enough: Mapping[str, np.ndarray],
    clear: float,
    group: Any = None,
) -> dict[str, np.ndarray]:
    """Scores of `test`, N T each."""
    test, taps = found["test"], len(found["test"].taps)
    facts = {role: lens(features, clear) for role, features in found.items()}
    halves = clusters(found["tune"]) % 2 == 0
    names = {"constant": None, "confidence": 0, "margin": 2, "entropy": 3}
    scores = {
        name: np.zeros((test.count, taps)) if at is None else facts["test"][:, :, at] * (-1 if name == "entropy" else 1)
        for name, at in names.items()
    }

    def work(t: int) -> dict[str, np.ndarray]:
        read = {role: states(decoder, features, t) for role, features in found.items()}
        both = {role: np.concatenate([facts[role][:, t], read[role]], axis=1) for role in found}
        odds = {}
        for name, given in (("probe", both), ("state probe", read)):
            fitted = probe(given["heads"], enough["heads"][:, t], given["tune"], enough["tune"][:, t])
            odds[name] = {role: fitted(given[role]) for role in ("tune", "test")}
        plain = {role: np.insert(facts[role][:, t], 0, 1, axis=1) for role in ("tune", "test")}
        weighed = {role: np.insert(plain[role], 0, of, axis=1) for role, of in odds["probe"].items()}
        settled = crossed(weighed["tune"], enough["tune"][:, t].astype(float), halves)  # as the head's are
        return {"probe": weighed["test"] @ settled, "state probe": odds["state probe"]["test"]}

    each = list(by_hosts(group, range(taps), work, "probes"))
    return scores | {name: np.stack([of[name] for of in each], axis=1) for name in each[0]}


def lens(features: Features, clear: float) -> np.ndarray:
    """N T 5: of the whole head, logs of the first share and of all others, margin, entropy, margin up to `clear`."""
    doubt, margin = features.whole("doubt"), features.whole("margin")
    parts = [np.log1p(-np.exp(doubt)), doubt, margin, features.whole("entropy"), np.minimum(margin, clear)]
    return np.stack(parts, axis=-1).astype(np.float32)


def states(decoder: Decoder, features: Features, tap: int) -> np.ndarray:
    parts = [np.array(normed(decoder, features.states(at, tap)[:, None]))[:, 0] for at in chunks(features.count)]
    return np.concatenate(parts)


def vitality(found: Mapping[str, Features], said: Told, clear: float, group: Any = None) -> tuple[dict, dict]:
    """By which share of its squared error the head is better than what the lens's confidence tells of vitality."""
    test = found["test"]
    alive, guess = test.whole("vitality"), 1 / (1 + np.exp(-said.vitality))

    def work(t: int) -> dict[str, np.ndarray]:
        given = {role: lens(features, clear)[:, t] for role, features in found.items()}
        truth = {role: features.whole("vitality")[:, t] for role, features in found.items()}
        there = {role: np.isfinite(of) for role, of in truth.items()}
        pairs = [part for role in ("heads", "tune") for part in (given[role][there[role]], truth[role][there[role]])]
        return {"plain": 1 / (1 + np.exp(-probe(*pairs)(given["test"])))}

    plain = np.stack([of["plain"] for of in by_hosts(group, range(len(test.taps)), work)], axis=1)
    ours, theirs = np.square(guess - alive), np.square(plain - alive)
    cluster = clusters(test)
    gains = {
        str(tap): estimate(resampled(lambda w, t=t: 1 - (w * ours[:, t]).sum() / (w * theirs[:, t]).sum(), cluster))
        for t, tap in enumerate(test.taps)
    }
    whole = resampled(lambda w: 1 - (w @ ours).sum() / (w @ theirs).sum(), cluster)
    histogram = [np.histogram(alive[:, t], bins=10, range=(0, 1))[0].tolist() for t in range(len(test.taps))]
    metrics = {"vitality_gain": whole.value, "vitality_gain_interval": list(whole.interval), "vitality_gains": gains}
    return metrics, {"vitality": dict(zip(map(str, test.taps), histogram, strict=True))}


def routes(guess: np.ndarray, route: np.ndarray, cluster: np.ndarray) -> dict[str, Any]:
    """All taps together."""
    confusion = np.zeros((len(ROUTES), len(ROUTES)), int)
    np.add.at(confusion, (route.ravel(), guess.ravel()), 1)
    right, unsafe = (guess == route).mean(1), ((guess == ACCEPT) & (route != ACCEPT)).mean(1)
    there = np.flatnonzero(confusion.sum(1))

    def f1(weights: np.ndarray) -> float:
        w = np.repeat(weights, route.shape[1])
        table = np.zeros(confusion.shape)
        np.add.at(table, (route.ravel(), guess.ravel()), w)
        return float(np.mean([2 * table[c, c] / max(table[c].sum() + table[:, c].sum(), 1e-9) for c in there]))

    return {
        "route_accuracy": estimate(mean(right, cluster)),
        "macro_f1": estimate(resampled(f1, cluster)),
        "unsafe_accept_rate": estimate(mean(unsafe, cluster)),
        "mean_cost": float((confusion * np.array(COST)).sum() / confusion.sum()),
        "confusion": confusion.tolist(),
        "cost": [list(row) for row in COST],
    }


def estimate(of) -> dict[str, Any]:
    return {"value": of.value, "interval": list(of.interval)}


def curve(score: np.ndarray, wrong: np.ndarray) -> dict[str, list[float]]:
    """Risk at evenly spread coverages."""
    missed = np.cumsum(wrong[np.argsort(-score, kind="stable")]) / np.arange(1, len(wrong) + 1)
    at = np.unique(np.linspace(len(wrong) / POINTS, len(wrong), POINTS).astype(int)) - 1
    return {"coverage": np.round((at + 1) / len(wrong), 4).tolist(), "risk": np.round(missed[at], 5).tolist()}


def reliability(chance: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Bins of equal numbers: what was said and what was true; ECE is their mean distance."""
    parts = np.array_split(np.argsort(chance, kind="stable"), BINS)
    said, true = ([float(of[part].mean()) for part in parts] for of in (chance, label))
    error = sum(len(p) * abs(a - b) for p, a, b in zip(parts, said, true, strict=True)) / len(chance)
    return {"said": np.round(said, 4).tolist(), "true": np.round(true, 4).tolist(), "ece": round(error, 5)}
