"""The depth stage: at each tap a module that mends what the lens cannot read yet, beside a tuned lens of equal cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from agp.artifacts import write_json
from agp.bounds import Count, Share, Whole
from agp.macs import macs
from agp.models.decoder import Decoder
from agp.train import FitConfig, real
from curricula.clustered import clusters, mean
from curricula.exchange import ranked
from curricula.features import Features
from curricula.mending import WIDE, Batches, Mended, loss, mended, parts
from curricula.teacher import teacher
from curricula.training import made, shared, train
from curricula.tuned import Lens
from heads import depth, saved
from heads.glimpse import most_used

OWN = ("asked", "bias", "scale")  # what reads the taps: there is more of it at each


@dataclass(frozen=True, kw_only=True)
class Config:
    width: Count = 128  # of its MLP
    blocks: tuple[Whole, ...] = ()  # whose attention it begins with; none: of each kind the one midway
    documents: Count = 8  # a step
    vocabulary: Count = 512  # tokens that a step distinguishes
    top: Count = 8  # of the teacher's likeliest, at least
    later: Share = 0.35  # of the steps, at taps where it begins as what was learned one tap before
    fit: FitConfig = FitConfig(
        steps=1600, rate=2e-3, warmup=20, floor=0.02, weight_decay=0.05, evaluate_every=400, save_every=400
    )


def run(config: Config, needs: Mapping[str, Path], out: Path, group: Any) -> dict[str, Any]:
    decoder = teacher(needs["domain"]).model
    found = {role: Features(needs["harvest"], role) for role in ("heads", "tune", "test")}
    taps, blocks = found["heads"].taps, config.blocks or midway(decoder)
    settings = [depth.Config(taps=t + 1, blocks=blocks, width=config.width) for t in range(len(taps))]
    mx.random.seed(config.fit.seed)
    modules = [depth.Head(of, decoder) for of in settings]
    lenses = [Lens(decoder, head.taps, modules[0].macs) for head in modules]  # later ones weigh more taps, by a trifle
    rank, hosts = ranked(group)
    ways = {"module": modules, "lens": lenses}
    for number, (name, heads) in enumerate(ways.items()):
        if number % hosts == rank:  # by one host: steps are so small that to add up slopes would take as long again
            learn(config, heads, decoder, found, [out / f"{name}-{tap}" for tap in taps], needs, quiet=bool(rank))
    for number, (name, heads) in enumerate(ways.items()):
        for tap, head in zip(taps, heads, strict=True):
            shared(head, out / f"{name}-{tap}", group, number % hosts)
    told = mended([*modules, *lenses], decoder, found["test"], parts(found["test"], WIDE), group)
    for tap, of, head in zip(taps, settings, modules, strict=True):
        saved.save(out / f"module-{tap}", of, head)
    cheapest = min(macs(decoder).blocks[decoder.config.num_producers :])
    metrics, plots = measured(found["test"], told)
    write_json(out / "plots.json", plots)
    spent = {str(tap): head.macs for tap, head in zip(taps, modules, strict=True)}
    return {"blocks": blocks, "macs": spent, "cost": max(spent.values()) / cheapest} | metrics


def faults(config: Config, model: Decoder) -> list[str]:
    first, count = model.config.num_producers, model.config.num_layers
    if all(first <= block < count for block in config.blocks):
        return []
    return [f"blocks are {config.blocks}; those that borrow their keys and values, {first} to {count - 1}, can be used"]


def midway(decoder: Decoder) -> tuple[int, ...]:
    """Of each kind of attention, the borrowing block that is nearest the middle of those above the producers."""
    config = decoder.config
    above = range(config.num_producers, config.num_layers)
    middle = (config.num_producers + config.num_layers) / 2
    kinds = {config.layer_types[block]: None for block in above}
    return tuple(
        min((block for block in above if config.layer_types[block] == kind), key=lambda block: abs(block - middle))
        for kind in kinds
    )


def inherit(head: Any, before: Any) -> None:
    arrays: Any = tree_flatten(before.parameters())
    head.load_weights([(name, array) for name, array in arrays if name not in OWN], strict=False)


def learn(
    config: Config,
    chain: Sequence[Any],
    decoder: Decoder,
    found: Mapping[str, Features],
    outs: Sequence[Path],
    needs: Mapping[str, Path],
    quiet: bool,
) -> None:
    """One tap after another, each beginning as what was learned before."""
    given, tune = found["heads"], found["tune"]
    used = most_used(given.whole("taught"), given.whole("taught_logs"), config.vocabulary)
    missed = partial(loss, decoder=decoder, end=given.about["end"])
    for t, (head, out) in enumerate(zip(chain, outs, strict=True)):
        steps = max(1, round(config.later * config.fit.steps)) if t else config.fit.steps
        fit = replace(config.fit, steps=steps, seed=config.fit.seed + 100 * head.taps)
        if t:
            inherit(head, chain[t - 1])
        which = {"taps": head.taps, "size": config.documents, "top": config.top, "seed": fit.seed}
        judge = partial(held, head, Batches(decoder, tune, used, **which), tune, missed)
        batches = Batches(decoder, given, used, **which)
        train(head, missed, batches, fit, out, scores=judge, inputs=made(config, needs), group=None, quiet=quiet)


def held(head: Any, batches: Batches, tune: Features, missed: Callable) -> dict[str, float]:
    sums = np.zeros(2)
    for documents in parts(tune, WIDE):
        sums += [real(x) for x in missed(head, given=batches.given(documents))]
    return {"loss": sums[0] / sums[1]}


def measured(test: Features, said: Mended) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the modules said, tap by tap, and after them the lenses."""
    cluster, plain = clusters(test), test.whole("agrees")
    metrics: dict[str, Any] = {name: {} for name in ("agreement", "lens", "tuned_lens", "gain", "most", "moves")}
    plots: dict[str, Any] = {"weights": {}}
    for t, tap in enumerate(test.taps):
        ours, lens, weights = said.agrees[:, t], said.agrees[:, len(test.taps) + t], said.weights[t]
        rows = {"agreement": ours, "lens": plain[:, t], "tuned_lens": lens, "gain": ours.astype(float) - lens}
        for name, of in rows.items():
            told = mean(of.astype(float), cluster)
            metrics[name][str(tap)] = {"value": told.value, "interval": list(told.interval)}
        metrics["most"][str(tap)] = float(weights.max(-1).mean())
        metrics["moves"][str(tap)] = float(weights.std(0).mean())  # from token to token
        plots["weights"][str(tap)] = by_source(test, weights)
    gains = list(metrics["gain"].values())
    return metrics | {"gain_first": gains[0]["value"], "gain_surely": min(of["interval"][0] for of in gains)}, plots


def by_source(test: Features, weights: np.ndarray) -> dict[str, list[float]]:
    source = np.array([document["source"] for document in test.documents])[test.document]
    return {name: np.round(weights[source == name].mean(0), 4).tolist() for name in sorted(set(source))}
