"""What a semantic head is worth on text nobody learned from: its concepts, its states, and what is said after them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.models.load import Loaded
from agp.stats import Estimate
from curricula import concepts
from curricula.clustered import clusters, mean
from curricula.concepts import Areas
from curricula.features import Features
from curricula.kernel import Labels
from curricula.onward import Onward
from heads import semantic
from heads.semantic import TYPES, Head

CHUNK = 1024  # positions whose codes are there at once
DAMPED = 1e-3  # of the probe's mean variance
Mend = Callable[[mx.array], mx.array]  # states N S -> states N S


class Role(NamedTuple):
    features: Features
    number: int  # of the tap
    labels: Labels

    def states(self, at: np.ndarray) -> mx.array:
        return mx.array(self.features.states(at, self.number).reshape(len(at), -1))

    def chunks(self) -> list[np.ndarray]:
        count = self.features.count
        return [np.arange(at, min(at + CHUNK, count)) for at in range(0, count, CHUNK)]


class Seen(NamedTuple):
    """Of each position; directions and sizes apart."""

    scores: np.ndarray  # N C
    named: np.ndarray  # N C: concepts that are active
    active: np.ndarray  # N: latents that are
    missed: np.ndarray  # N: squared distance to the state made again
    spread: np.ndarray  # N: to the mean of all
    probed: np.ndarray  # N C: scores of the dense probe
    used: np.ndarray  # W: how often each latent was active


class Line(NamedTuple):
    """All there is, as its second moments say it: the dense probe, and the directions that vary most."""

    mean: mx.array  # S
    probe: mx.array  # S C
    first: mx.array  # 32 S


def line(role: Role, count: int) -> Line:
    total, size = role.features.count, role.states(np.arange(1)).shape[1]
    sums, squares, of_true = np.zeros(size), np.zeros((size, size)), np.zeros((size, role.labels.true.shape[1]))
    known: np.ndarray = np.any(role.labels.known, axis=1)
    moments, centre, truth = np.zeros((size, size)), np.zeros(size), np.zeros(of_true.shape[1])
    for at in role.chunks():
        seen = np.array(semantic.normalised(role.states(at)))
        sums, squares = sums + seen.sum(0), squares + seen.T @ seen
        said, true = seen[known[at]], role.labels.true[at][known[at]]
        moments, centre, truth = moments + said.T @ said, centre + said.sum(0), truth + true.sum(0)
        of_true += said.T @ true
    few = max(1, known.sum())
    moments, together = (
        moments / few - np.outer(centre, centre) / few**2,
        of_true / few - np.outer(centre, truth) / few**2,
    )
    probe = np.linalg.solve(moments + (DAMPED * np.trace(moments) / size + 1e-12) * np.eye(size), together)
    covariance = squares / total - np.outer(sums, sums) / total**2
    first = np.ascontiguousarray(np.linalg.eigh(covariance)[1].T[::-1][:count])
    return Line(*(mx.array(x, mx.float32) for x in (sums / total, probe, first)))


def seen(head: Head, role: Role, beside: Line) -> Seen:
    parts, used = [], np.zeros(head.atoms.shape[0], int)
    whole = sum(semantic.normalised(role.states(at)).sum(0) for at in role.chunks()) / role.features.count
    count = sum(head.config.types)
    for at in role.chunks():
        states = role.states(at)
        true = semantic.normalised(states)
        code, again, _ = head(states, exactly=False)
        missed, spread = mx.square(true - again).sum(-1), mx.square(true - whole).sum(-1)
        found = (code.scores, code.chosen[:, :count], code.chosen.sum(-1), missed, spread, true @ beside.probe)
        parts.append([np.array(x) for x in found])
        used += np.array(code.chosen.sum(0))
    joined = [np.concatenate(of) for of in zip(*parts, strict=True)]
    return Seen(*joined, used=used)


def states_kept(found: Seen, role: Role) -> dict[str, Any]:
    """How much of the states the latents hold; an interval is of clusters."""
    cluster = clusters(role.features)
    kept = mean(1 - found.missed / found.spread, cluster, found.spread)
    each = mean(1 - found.missed / found.spread, cluster)
    return {
        **told("variance_explained", kept),
        "variance_explained_a_position": each.value,  # every one counts the same, however usual it is
        "l0": float(found.active.mean()),
        "l0_highest": float(np.quantile(found.active, 0.99)),
        "dead": float((found.used == 0).mean()),
    }


def told(name: str, of: Estimate | None) -> dict[str, Any]:
    value, interval = (None, None) if of is None else (of.value, list(of.interval))
    return {name: value, f"{name}_interval": interval}


def names_told(found: Seen, role: Role, head: Head) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics of the concepts, and a line for each. `near` are the hard cases: among documents that share a primitive
    with some in which the concept holds."""
    cluster, (true, known) = clusters(role.features), role.labels
    types = np.repeat(TYPES, head.config.types)
    close = known & near(role)
    at_all = concepts.areas(found.scores, true, known, cluster)
    hard = concepts.areas(found.scores, true, close, cluster)
    probe = concepts.areas(found.probed, true, known, cluster)
    documents = whole_documents(found.scores, role)
    every = np.ones(len(types), bool)
    metrics = {
        **told("auroc", concepts.mean(at_all, every)),
        **told("auroc_documents", concepts.mean(documents, every)),
        **told("auroc_near", concepts.mean(hard, types != TYPES[0])),
        **told("probe_auroc", concepts.mean(probe, every)),
        "concepts": int(np.isfinite(at_all.values).sum()),
    }
    for kind in TYPES:
        metrics |= told(f"auroc_{kind}", concepts.mean(at_all, types == kind))
    of_invariant = types == "invariant"
    for name, where in (("false_invariants", known), ("false_invariants_near", close)):
        wrong = (where & ~true)[:, of_invariant]
        metrics[name] = float(found.named[:, of_invariant][wrong].mean()) if wrong.any() else None
    documents_of = [len(np.unique(role.features.document[true[:, c]])) for c in range(len(types))]
    table = [
        {
            "name": name,
            "type": str(types[c]),
            "documents": documents_of[c],
            **{n: number(a.values[c]) for n, a in (("auroc", at_all), ("documents_auroc", documents), ("near", hard))},
            **hits(found.named[:, c], true[:, c], known[:, c]),
            "threshold": float(head.limits[c].item()),  # type: ignore[arg-type]
        }
        for c, name in enumerate(head.config.concepts)
    ]
    return metrics, table


def number(x: float) -> float | None:
    return round(float(x), 4) if np.isfinite(x) else None


def hits(active: np.ndarray, true: np.ndarray, known: np.ndarray) -> dict[str, float | None]:
    both = (active & true & known).sum()
    return {
        "precision": number(both / said) if (said := (active & known).sum()) else None,
        "recall": number(both / there) if (there := (true & known).sum()) else None,
    }


def near(role: Role) -> np.ndarray:
    """N C: positions of documents that name a primitive which some document names in which the concept holds."""
    said = [document["concepts"].get(TYPES[0], ()) for document in role.features.documents]
    found = np.zeros_like(role.labels.true)
    for c in range(found.shape[1]):
        own = {name for d in np.unique(role.features.document[role.labels.true[:, c]]) for name in said[d]}
        found[:, c] = np.array([not own.isdisjoint(names) for names in said])[role.features.document]
    return found


def whole_documents(scores: np.ndarray, role: Role) -> Areas:
    """A document scores the mean of its positions; a concept holds of it if it does anywhere in it."""
    begins, counts = role.features.begins, np.bincount(role.features.document)
    each = np.add.reduceat(scores, begins, axis=0) / counts[:, None]
    true, known = (np.logical_or.reduceat(of, begins, axis=0) for of in role.labels)
    return concepts.areas(each, true, known, clusters(role.features)[begins])


def spliced(head: Head, role: Role, beside: Line, loaded: Loaded, group: Any) -> dict[str, Any]:
    """What the blocks above say of states made again, beside other ways to make them."""
    mx.random.seed(0)
    untrained = Head(head.config)  # its atoms are random; concepts are picked as the head picks them
    untrained.mean, untrained.naming = head.mean, head.naming

    def sized(direction: Mend) -> Mend:
        """With the true size."""
        return lambda states: direction(states) * mx.exp(semantic.log_size(states))[:, None]

    def flat(states: mx.array) -> mx.array:
        off = semantic.normalised(states) - beside.mean
        return beside.mean + off @ beside.first.T @ beside.first

    ways: Mapping[str, Mend] = {
        "state": lambda states: states,
        "latents": lambda states: head.mended(states),
        "random": sized(lambda states: untrained(states)[1]),
        "pca": sized(flat),
        "nothing": sized(lambda states: mx.broadcast_to(beside.mean, states.shape)),
    }
    above = Onward(loaded.model, role.features, role.features.taps[role.number])
    at, agrees, divergence = above.read(
        range(len(role.features.begins)), [lambda states, _, way=way: way(states) for way in ways.values()], group
    )
    right = dict(zip(ways, agrees.mean(0).tolist(), strict=True))
    cluster, latents = clusters(role.features)[at], list(ways).index("latents")
    return {
        **told("spliced_agreement", mean(agrees[:, latents], cluster)),
        **told("spliced_kl", mean(divergence[:, latents], cluster)),
        "state_agreement": right["state"],  # of states as they lie on disk: all that can be had
        **{f"{name}_agreement": right[name] for name in ("random", "pca", "nothing")},
        **{f"{name}_variance": variance(role, ways[name]) for name in ("random", "pca")},
        "margin_over_random": right["latents"] - right["random"],
    }


def variance(role: Role, way: Mend) -> float:
    whole = sum(semantic.normalised(role.states(at)).sum(0) for at in role.chunks()) / role.features.count
    sums = np.zeros(2)
    for at in role.chunks():
        states = role.states(at)
        true, again = semantic.normalised(states), semantic.normalised(way(states))
        sums += [mx.square(true - of).sum().item() for of in (again, whole)]
    return float(1 - sums[0] / sums[1])


def measured(
    head: Head, role: Role, learned: Role, loaded: Loaded, group: Any = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    config = head.config
    beside = line(learned, config.picks * config.each + sum(map(min, config.active, config.types)))
    found = seen(head, role, beside)
    metrics, table = names_told(found, role, head)
    return metrics | states_kept(found, role) | spliced(head, role, beside, loaded, group), table
