"""The semantic stage: a head that names what is in a state and makes it again from a few active latents.

It learns from `heads`, `tune` says when it was best and where its thresholds lie, and all that is measured is `test`,
with thresholds, as it will be used. Beside it stand a dense probe, the same pursuit with atoms that nobody trained, the
likeliest 32 directions, and no state at all; to these the true size of the state is given, which the head must tell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.artifacts import digest, write_json
from agp.bounds import Count, Seed, Weight, Whole
from agp.models.load import Loaded
from agp.train import FitConfig, drawn
from curricula import concepts, examples, kernel
from curricula.exchange import ranked
from curricula.features import Features
from curricula.kernel import Concept, Labels
from curricula.projection import Role, measured
from curricula.teacher import teacher
from curricula.training import made, shared, train
from heads import saved, semantic
from heads.semantic import TYPES, Head

PLACES = ("kernel",)
ROLES = ("heads", "tune", "test")
SOME = 4096  # positions of tune by which thresholds of free latents are chosen
SPARE = 0.96  # of the latents that may be active: other text has some more


@dataclass(frozen=True, kw_only=True)
class Config:
    tap: Whole | None = None  # the block after which states are read; none: the first tap
    kernel: str = ""  # a file that names concepts; none: those that rows name
    least: Count = 10  # documents of `heads` in which a concept holds: of fewer nothing is learned
    width: Count = 1152  # free latents
    active: tuple[Count, ...] = (1, 2, 1)  # concepts of each type
    picks: Count = 7
    each: Count = 4  # free latents at each pick
    settle: Whole = 1
    naming: Weight = 0.1
    rows: Count = 256  # positions of a batch
    fit: FitConfig = FitConfig(steps=150, rate=1e-2, warmup=10, evaluate_every=75)
    seed: Seed = 0


class Known(NamedTuple):
    """What is learned, and what is not."""

    concepts: list[Concept]
    left_out: list[dict[str, Any]]  # concepts that hold too seldom, or hardly ever do not
    separation: dict[str, float]  # of concepts by example


def given(config: Config) -> dict[str, Any]:
    return {"kernel": digest(config.kernel)} if config.kernel else {}


def faults(config: Config, taps: Sequence[int]) -> list[str]:
    wrong = []
    if config.tap not in (None, *taps):
        wrong.append(f"tap is {config.tap}; states are kept after blocks {', '.join(map(str, taps))}")
    if len(config.active) != len(TYPES):
        wrong.append(f"active is {config.active}; a number for each of {', '.join(TYPES)} is needed")
    if config.picks * config.each > config.width:
        told = f"picks is {config.picks}, of {config.each} latents each"
        wrong.append(f"{told}; no more than width, {config.width}, can be picked in all")
    if config.kernel:
        try:
            kernel.read(Path(config.kernel).expanduser())
        except ValueError as e:
            wrong.append(f"kernel: {e}")
    return wrong


def run(config: Config, needs: Mapping[str, Path], out: Path, group: Any) -> dict[str, Any]:
    asked = kernel.read(Path(config.kernel).expanduser()) if config.kernel else None
    loaded = teacher(needs["domain"])
    roles, known = read(config, needs["harvest"], loaded, asked)
    head = begun(config, roles["heads"], known)
    rank, _ = ranked(group)
    if rank == 0:  # by one host: where two latents are as good, what is only rounding picks one
        trained(config, head, roles, needs, out)
    shared(head, out, group, 0)
    calibrate(head, roles["tune"])
    saved.save(out, head.config, head)
    metrics, table = measured(head, roles["test"], roles["heads"], loaded, group)
    write_json(out / "plots.json", {"concepts": table, "left_out": known.left_out, "separation": known.separation})
    tap = roles["test"].features.taps[roles["test"].number]
    return metrics | {"tap": tap, "left_out": len(known.left_out)}


def read(config: Config, harvest: Path, loaded: Loaded, asked: list[Concept] | None) -> tuple[dict[str, Role], Known]:
    """Positions of all roles with what is true of them, for the concepts that can be learned."""
    assert loaded.tokenizer is not None
    features = {role: Features(harvest, role) for role in ROLES}
    tap = features["heads"].taps[0] if config.tap is None else config.tap
    named = kernel.from_rows(features["heads"].documents) if asked is None else asked
    shown = [concept for concept in named if concept.source == "examples"]
    found = [examples.direction(concept, examples.states(loaded, tap)) for concept in shown]
    labels = {}
    for role, of in features.items():
        alike = examples.like(of, tap, found) if found else []
        like = {concept.name: row for concept, row in zip(shown, alike, strict=True)}
        labels[role] = kernel.labels(named, of, loaded.tokenizer, like)
    counts = [documents(features["heads"], labels["heads"], number) for number in range(len(named))]
    if asked is not None and (wrong := unheard(named, counts)):
        raise ValueError(f"{config.kernel}:\n" + "\n".join(wrong))
    kept = [n for n, (true, false) in enumerate(counts) if min(true, false) >= config.least]
    roles = {
        role: Role(of, of.taps.index(tap), Labels(*(x[:, kept] for x in labels[role]))) for role, of in features.items()
    }
    left_out = [
        {"name": concept.name, "type": concept.type, "documents": counts[n][0]}
        for n, concept in enumerate(named)
        if n not in kept
    ]
    separation = {concept.name: one.separation for concept, one in zip(shown, found, strict=True)}
    return roles, Known([named[n] for n in kept], left_out, separation)


def documents(features: Features, labels: Labels, number: int) -> tuple[int, int]:
    """In how many it holds somewhere, and in how many it does not somewhere."""
    sides = (labels.known[:, number] & side for side in (labels.true[:, number], ~labels.true[:, number]))
    true, false = (len(np.unique(features.document[side])) for side in sides)
    return true, false


def unheard(named: list[Concept], counts: list[tuple[int, int]]) -> list[str]:
    said = {True: "labels nothing", False: "labels everything"}
    return [f"{c.name}: {said[not true]} in the documents" for c, (true, false) in zip(named, counts, strict=True)
            if not true or not false]  # fmt: skip


def begun(config: Config, role: Role, known: Known) -> Head:
    """Free atoms are states that were seen, those of concepts the means of theirs: nearly there."""
    names = tuple(concept.name for concept in known.concepts)
    types = tuple(sum(concept.type == kind for concept in known.concepts) for kind in TYPES)
    shape = {n: getattr(config, n) for n in ("width", "active", "picks", "each", "settle", "naming")}
    size = role.states(np.arange(1)).shape[1]
    mx.random.seed(config.seed)
    head = Head(semantic.Config(state=size, concepts=names, types=types, **shape))
    count, sums, of_concept, sizes = 0, np.zeros(size), np.zeros((len(names), size)), mx.array(0.0)
    for at in role.chunks():
        states = role.states(at)
        seen = np.array(semantic.normalised(states))
        count, sums, sizes = count + len(at), sums + seen.sum(0), sizes + semantic.log_size(states).sum()
        of_concept += role.labels.true[at].T @ seen
    centre = sums / count
    own = of_concept / np.maximum(1, role.labels.true.sum(0))[:, None] - centre
    rng = np.random.default_rng(drawn(config.seed, 1))
    picked = np.sort(rng.choice(count, config.width, replace=count < config.width))
    free = np.array(semantic.normalised(role.states(picked))) - centre
    atoms = np.concatenate([own, free])
    head.mean, head.usual = mx.array(centre, mx.float32), sizes / count
    head.atoms = mx.array(atoms / np.linalg.norm(atoms, axis=1, keepdims=True), mx.float32)
    head.freeze(keys=semantic.SETTLED, recurse=False)
    return head


def trained(config: Config, head: Head, roles: Mapping[str, Role], needs: Mapping[str, Path], out: Path) -> None:
    role, tune = roles["heads"], roles["tune"]
    share = role.labels.true.sum(0) / np.maximum(1, role.labels.known.sum(0))
    rare = (1 - share) / np.maximum(share, 1e-9)  # so that both sides of a concept weigh the same

    def batch(of: Role, at: np.ndarray) -> tuple[mx.array, ...]:
        true, known = (labels[at] for labels in of.labels)
        return (
            of.states(at),
            mx.array(true.astype(np.float32)),
            mx.array((known * np.where(true, rare, 1.0)), mx.float32),
        )

    def batches(step: int, micro: int) -> tuple[mx.array, ...]:
        count = role.features.count
        round_, number = divmod(step - 1, max(1, count // config.rows))
        order = np.random.default_rng(drawn(config.seed, 2, round_)).permutation(count)
        return batch(role, order[number * config.rows : (number + 1) * config.rows])

    held = [batch(tune, at) for at in tune.chunks()]

    def scores() -> dict[str, float]:
        sums = np.array([[x.item() for x in semantic.loss(head, *of)] for of in held]).sum(0)
        return {"loss": float(sums[0] / sums[1])}

    made_of = made(replace(config, kernel=""), needs) | given(config)
    train(head, semantic.loss, batches, config.fit, out, scores=scores, inputs=made_of, group=None)


def calibrate(head: Head, tune: Role) -> None:
    """Thresholds of concepts by their best F1; of free latents so that each is as often active as in training, or
    less, where concepts took more than their part."""
    config, (true, known) = head.config, tune.labels
    scores = np.concatenate([np.array(head.naming(semantic.normalised(tune.states(at)))) for at in tune.chunks()])
    asked = [(scores[known[:, c], c], true[known[:, c], c]) for c in range(scores.shape[1])]
    head.limits = mx.array([concepts.limit(*of) if of[1].any() else semantic.NEVER for of in asked], mx.float32)
    count = tune.features.count
    seen = semantic.normalised(tune.states(np.linspace(0, count - 1, min(SOME, count)).astype(int)))
    said = head.naming(seen)
    named = said > head.limits
    free = config.picks * config.each
    allowed = SPARE * (free + sum(map(min, config.active, config.types))) - float(np.array(named).sum() / len(seen))
    levels = []

    def pick(along: mx.array, step: int) -> mx.array:
        shares = np.array(head.highest(along, step)).mean(0) * min(1.0, allowed / free)
        ordered = -np.sort(-np.array(along), axis=0)
        wanted = np.diff(np.round(np.cumsum(shares) * len(ordered)), prepend=0)  # whole numbers of the same sum
        last = np.minimum(wanted.astype(int), len(ordered) - 1)
        level = ordered[last, np.arange(len(shares))]
        levels.append(np.where(last > 0, np.maximum(level, 1e-6), semantic.NEVER).astype(np.float32))
        return along > mx.array(levels[-1])

    mx.eval(head.pursue(seen - head.mean, said, named, pick))
    head.levels = mx.array(np.stack(levels))
    head.freeze(keys=semantic.SETTLED, recurse=False)
