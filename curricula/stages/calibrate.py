"""The calibrate stage: with the depth module in place, the last layer fitted again, and thresholds that keep a promise.

Three decisions, each at some risks: to leave with the state as it is (accept), to leave with the mended one (revive),
and to hand over at the local budget what could have been mended there (escalate: a wasted journey, no wrong token).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.artifacts import write_json
from agp.bounds import Chance, Count
from agp.macs import macs
from agp.train import FitConfig
from curricula import labels, policy, risk
from curricula.against import routes
from curricula.clustered import clusters, mean
from curricula.features import Features
from curricula.labels import Limits, Seen
from curricula.mending import Mended, stacked
from curricula.policy import Facing, Price
from curricula.positions import Met, judged
from curricula.probe import crossed
from curricula.stages.trajectory import GLIMPSE, LIMITS, learn, settled, sureness
from curricula.teacher import teacher
from heads import glimpse, saved, trajectory
from heads.trajectory import Truth

ROLES = ("heads", "tune", "calibrate", "test")
THRESHOLDS = "thresholds.json"


@dataclass(frozen=True, kw_only=True)
class Config:
    risks: tuple[Chance, ...] = (0.01, 0.02, 0.05)
    delta: Chance = 0.1  # the chance with which a promise may fail
    grid: Count = 80  # thresholds tried
    resplits: Count = 200
    batch: Count = 512
    fit: FitConfig = FitConfig(
        steps=300, rate=2e-3, warmup=20, floor=0.02, weight_decay=0.05, evaluate_every=100, save_every=300
    )


class Decision(NamedTuple):
    """What is decided by one threshold, where, and what it would meet in each role."""

    taps: tuple[int, ...]
    facing: dict[str, Facing]


def faults(config: Config) -> list[str]:
    return [] if config.risks else ["risks are none; one or more shares between 0 and 1 are needed"]


def run(config: Config, needs: Mapping[str, Path], out: Path, group: Any) -> dict[str, Any]:
    decoder = teacher(needs["domain"]).model
    found = {role: Features(needs["harvest"], role) for role in ROLES}
    taps, blocks = found["test"].taps, decoder.config.num_layers
    limit = Limits(**json.loads((needs["trajectory"] / LIMITS).read_text()))
    glance = saved.load(needs["trajectory"] / GLIMPSE, glimpse.Config, glimpse.Head)
    settings = saved.settings(needs["trajectory"] / saved.CONFIG, trajectory.Config)
    head = saved.load(needs["trajectory"], trajectory.Config, trajectory.Head)
    plain = {role: Met(decoder, features, glance, settings.window) for role, features in found.items()}
    early = {role: plain[role].answers(head).leave for role in ROLES[1:]}
    modules, states = stacked(needs["depth"], decoder, found, group)
    met = {role: Met(decoder, found[role], glance, settings.window, of.read) for role, of in states.items()}
    truth = {role: true(found[role], limit, of, blocks) for role, of in states.items()}
    met["heads"].scaled(head)
    head.unfreeze(keys=["last"], recurse=False)
    how = learn(head, trajectory.loss, config, met, truth, out, needs, group)
    settled(head, met["tune"], np.array(truth["tune"].route) == labels.ACCEPT)
    surely(head, met["tune"], states["tune"].agrees)
    saved.save(out, settings, head)
    said = {role: met[role].answers(head) for role in ROLES[1:]}
    hoping, rest = zip(*(head.macs(t) for t in range(len(taps))), strict=True)
    looking = [module.macs + glance.macs + more for module, more in zip(modules, rest, strict=True)]
    price = policy.price(macs(decoder), taps, hoping, looking)
    late = {role: Facing(of.leave, ~states[role].agrees, clusters(found[role])) for role, of in said.items()}
    plan = policy.cheapest(late["tune"], said["tune"].hope, price, config.risks[0], config.grid)
    within = labels.budget(taps, blocks)
    decisions = decided(plan, within, found, early, late, {role: of.hope for role, of in said.items()})
    cluster = clusters(found["test"])
    chosen = {name: certified(config, decision) for name, decision in decisions.items()}
    gate = [None if least == -np.inf else least for least in plan.gate]  # none: whatever the hope, it is looked
    told = {"exits": plan.taps, "gate": gate, "budget": within, "taps": taps, "delta": config.delta}
    write_json(out / THRESHOLDS, told | chosen)
    final = routes(said["test"].route.argmax(-1), np.array(truth["test"].route), cluster)
    return how | {
        "exits": [taps[t] for t in plan.taps],
        "looked": float(np.isfinite(decisions["revive"].facing["test"].score[:, list(plan.taps)]).any(1).mean()),
        "checks": {"hoping": hoping, "looking": looking},
        "decisions": chosen,
        "violations": max(of["violations"] for kind in chosen.values() for of in kind.values()),
        "broken": sum(of["risk_interval"][0] > float(at) for kind in chosen.values() for at, of in kind.items()),
        **spent(config, price, decisions["revive"], chosen["revive"], states["test"], cluster),
        **final,
    }


def surely(head: trajectory.Head, met: Met, agrees: np.ndarray) -> None:
    """What leaving hangs on is fitted to its optimum, on documents that no module has learned from."""
    features, halves = met.read_by(head), clusters(met.features) % 2 == 0
    before, column = head.first.shape[1], len(labels.ROUTES) + 1
    after = before + met.facts.shape[2]  # what is read beyond a glance has more numbers than these documents can weigh
    first, last = np.array(head.first), np.array(head.last)
    last[:, :, column] = 0
    for tap in range(agrees.shape[1]):
        label = agrees[:, tap].astype(float)
        last[tap, :after, column] = crossed(features[:, tap, :after], label, halves)
        first[tap] = crossed(features[:, tap, :before], label, halves)
    head.first, head.last = mx.array(first), mx.array(last)


def decided(
    plan: policy.Plan,
    within: int,
    found: Mapping[str, Features],
    early: Mapping[str, np.ndarray],
    late: Mapping[str, Facing],
    hope: Mapping[str, np.ndarray],
) -> dict[str, Decision]:
    accept, revive, escalate = {}, {}, {}
    for role, of in late.items():
        accept[role] = Facing(early[role], ~found[role].whole("agrees"), of.document)
        revive[role] = policy.gated(of, hope[role], plan.gate)
        escalate[role] = Facing(-of.score, ~of.differs, of.document)
    every = tuple(range(len(plan.gate)))
    return {
        "accept": Decision(every, accept),
        "revive": Decision(plan.taps, revive),
        "escalate": Decision((within,), escalate),
    }


def true(features: Features, limit: Limits, mended: Mended, blocks: int) -> Truth:
    """Labels with the depth module in place."""
    enough = labels.sufficient(judged(features), limit)
    healed = labels.sufficient(Seen(mended.agrees, mended.divergence, mended.margin), limit)
    route = labels.routes(enough, labels.budget(features.taps, blocks), healed)
    agrees, first = mended.agrees.astype(np.float32), labels.earliest(enough | healed)
    parts = route, features.whole("vitality"), agrees, sureness(features), first
    return Truth(*map(mx.array, parts))


def certified(config: Config, decision: Decision) -> dict[str, dict[str, Any]]:
    """By risk: the threshold, what it does on `test`, and how often its promise broke on resplits of all documents.

    A document is a whole source text, however many windows were taken of it. Resplits mix both roles: that scores mean
    less on `test`, only it can show.
    """
    facing, found = decision.facing, {}
    grid = policy.grid(facing["calibrate"].score[:, list(decision.taps)], config.grid)
    loss, leaving = policy.losses(facing["calibrate"], decision.taps, grid)
    test = policy.losses(facing["test"], decision.taps, grid)
    pool, pool_leaving = (np.concatenate(pair) for pair in zip((loss, leaving), test, strict=True))
    for alpha in config.risks:
        choice = risk.choose(loss, leaving, grid, alpha, config.delta, config.fit.seed)
        at = None if choice.threshold is None else int(np.flatnonzero(grid == choice.threshold)[0])
        broken = risk.violations(
            pool, pool_leaving, grid, alpha, config.delta, size=len(loss), resplits=config.resplits
        )  # fmt: skip
        risked = mean(np.zeros(len(test[0])) if at is None else test[0][:, at], np.arange(len(test[0])))
        found[f"{alpha:g}"] = {
            "threshold": choice.threshold,
            "risk": risked.value,
            "risk_interval": list(risked.interval),
            "leaving": 0.0 if at is None else float(test[1][:, at].mean()),
            "violations": broken,
        }
    return found


def spent(
    config: Config,
    price: Price,
    decision: Decision,
    chosen: Mapping[str, Mapping[str, Any]],
    mended: Mended,
    cluster: np.ndarray,
) -> dict[str, Any]:
    """Multiplications on `test` as a share of full depth, checks counted; and if all were known beforehand."""
    score, found = decision.facing["test"].score, {}
    for alpha in config.risks:
        at = policy.left(score, decision.taps, chosen[f"{alpha:g}"]["threshold"])
        told = mean(price.of(decision.facing["test"], decision.taps, at), cluster)
        found[f"{alpha:g}"] = {"value": told.value, "interval": list(told.interval)}
    first = np.where(mended.agrees.any(1), mended.agrees.argmax(1), mended.agrees.shape[1])
    oracle = (np.append(price.leaving, price.whole)[first] / price.whole).mean()
    return {"macs": found, "macs_first": found[f"{config.risks[0]:g}"]["value"], "macs_oracle": float(oracle)}
