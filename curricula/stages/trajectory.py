"""The trajectory stage: what can be known of a state before it is used, held against all that is simpler."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from agp.artifacts import write_json
from agp.bounds import Count, Part
from agp.losses import Sums
from agp.models.decoder import Decoder
from agp.train import FitConfig, drawn, real
from curricula import against, labels
from curricula.clustered import clusters
from curricula.features import Features
from curricula.positions import Met, chunks, judged, shares
from curricula.probe import crossed
from curricula.teacher import teacher
from curricula.training import made as made_of
from curricula.training import train
from heads import glimpse, saved, trajectory
from heads.trajectory import Truth

ROLES = ("heads", "tune", "test")
LIMITS, GLIMPSE = "limits.json", "glimpse"


@dataclass(frozen=True, kw_only=True)
class Config:
    glance: Count = 384  # tokens looked at
    window: Count = 4
    hidden: Count = 48
    dropout: Part = 0.1
    batch: Count = 512  # positions
    fit: FitConfig = FitConfig(
        steps=600, rate=2e-3, warmup=20, floor=0.02, weight_decay=0.05, evaluate_every=200, save_every=300
    )


def faults(config: Config) -> list[str]:
    least = {"glance": "there is a first choice and a second", "window": "a position and one before it"}
    return [
        f"{name} is {getattr(config, name)}; 2 or more is needed: {why}"
        for name, why in least.items()
        if getattr(config, name) < 2
    ]


def unfit(config: Config, model: Decoder) -> list[str]:
    words = model.config.vocab_size
    told = f"glance is {config.glance:,}; fewer than all {words:,} tokens of the vocabulary can be looked at"
    return [told] if config.glance >= words else []


def run(config: Config, needs: Mapping[str, Path], out: Path, group: Any) -> dict[str, Any]:
    decoder = teacher(needs["domain"]).model
    found = {role: Features(needs["harvest"], role) for role in ROLES}
    heads = found["heads"]
    limit = labels.limits(judged(found["tune"]))
    enough = {role: labels.sufficient(judged(features), limit) for role, features in found.items()}
    truth = {role: true(features, enough[role], decoder.config.num_layers) for role, features in found.items()}
    used = glimpse.most_used(heads.whole("taught"), heads.whole("taught_logs"), config.glance)
    looks, glance = glimpse.glimpse(decoder, used, limit.mu)
    met = {role: Met(decoder, features, glance, config.window) for role, features in found.items()}
    mx.random.seed(config.fit.seed)
    settings = made(config, heads)
    head = trajectory.Head(settings)
    met["heads"].scaled(head)
    how = learn(head, trajectory.loss, config, met, truth, out, needs, group)
    settled(head, met["tune"], enough["tune"])
    saved.save(out, settings, head)
    saved.save(out / GLIMPSE, looks, glance)
    write_json(out / LIMITS, limit._asdict())
    said = met["test"].answers(head)
    metrics, plots = against.measured(decoder, found, enough, limit.mu, np.array(truth["test"].route), said, group)
    write_json(out / "plots.json", plots)
    return {"limits": limit._asdict(), "glance_macs": glance.macs} | how | metrics


def made(config: Config, features: Features) -> trajectory.Config:
    shape = features.shards[0]["hidden"].shape
    return trajectory.Config(
        taps=len(features.taps),
        width=int(np.prod(shape[2:])),
        dim=shape[-1],
        facts=len(glimpse.FACTS),
        window=config.window,
        hidden=config.hidden,
        dropout=config.dropout,
    )


def true(features: Features, enough: np.ndarray, blocks: int) -> Truth:
    route = labels.routes(enough, labels.budget(features.taps, blocks))
    agrees = features.whole("agrees").astype(np.float32)
    parts = route, features.whole("vitality"), agrees, sureness(features), labels.earliest(enough)
    return Truth(*map(mx.array, parts))


def sureness(features: Features) -> np.ndarray:
    first = np.exp(features.whole("taught_logs")[:, :1].astype(np.float32))
    return np.repeat(first, len(features.taps), axis=1)


def some(truth: Truth, at: np.ndarray) -> Truth:
    return Truth(*(of[mx.array(at)] for of in truth))


def learn(
    head: trajectory.Head,
    loss: Callable,
    config: Any,
    met: Mapping[str, Met],
    truth: Mapping[str, Truth],
    out: Path,
    needs: Mapping[str, Path],
    group: Any,
) -> dict[str, Any]:
    """Of `heads`, to the least loss on `tune`; `config` says how large a batch is, and has a `fit`."""

    def batch(step: int, micro: int) -> tuple[tuple[trajectory.Seen, Truth, mx.array], ...]:
        seed = drawn(config.fit.seed, step, micro)
        at = np.sort(np.random.default_rng(seed).integers(met["heads"].features.count, size=config.batch))
        kept = head.kept(len(at), seed)
        return tuple(
            (met["heads"].seen(at[part]), some(truth["heads"], at[part]), kept[mx.array(part)])
            for part in shares(group, np.arange(config.batch))
        )

    def missed(head: trajectory.Head, *parts: tuple[trajectory.Seen, Truth, mx.array]) -> Sums:
        return reduce(lambda a, b: (a[0] + b[0], a[1] + b[1]), (loss(head, *part) for part in parts))

    scores = partial(held, head, loss, met["tune"], truth["tune"])
    return train(head, missed, batch, config.fit, out, scores=scores, inputs=made_of(config, needs), group=group)


def settled(head: trajectory.Head, met: Met, enough: np.ndarray) -> None:
    """The log-odds of accepting and all plain facts, weighed against each other on documents not learned from.

    Where one fact says nearly all, small steps end short of its weight, and what was learned is too sure of itself.
    """
    features, halves = met.read_by(head), clusters(met.features) % 2 == 0
    first, last = head.first.shape[1] - 2, np.array(head.last)
    plain = slice(first, first + 2 + met.facts.shape[2])  # one, path, facts
    for tap in range(len(last)):
        accept, given = last[tap, :, labels.ACCEPT], features[:, tap]
        both = np.concatenate([(given @ accept)[:, None], given[:, plain]], axis=1)
        share, *rest = crossed(both, enough[:, tap].astype(float), halves)
        accept *= share
        accept[plain] += rest
    head.last = mx.array(last)


def held(head: trajectory.Head, loss: Callable, met: Met, truth: Truth) -> dict[str, float]:
    sums = np.zeros(2)
    for at in chunks(met.features.count):
        sums += [real(x) for x in loss(head, met.seen(at), some(truth, at))]
    return {"loss": sums[0] / sums[1]}
