"""The transfer stage: codecs of several sizes, each begun in closed form and trained where the receiver minds errors.

What is learned from is the sensitivity of the blocks above the tap: the second moment of slopes of what they say. It is
taken once, and then no block is needed until all is measured. Measured is the receiver's next token: keys and values
are made at or below the tap, so one state more or less that was compressed changes no other position, and a token that
is the same is followed by the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from agp.artifacts import write_json
from agp.bounds import Count, Positive, Seed, Whole
from agp.hosts import totalled
from agp.train import FitConfig, drawn
from curricula.begun import CHUNK, Begun, room
from curricula.clustered import clusters, mean
from curricula.exchange import ranked
from curricula.features import Features
from curricula.onward import Onward
from curricula.payloads import followed, kept
from curricula.teacher import teacher
from curricula.training import made, shared, train
from heads import karhunen, saved, transfer
from heads.codec import Codec, Integers, Raw

GROUP = 32  # values that share a scale
GREEDY = 16  # tokens


@dataclass(frozen=True, kw_only=True)
class Config:
    tap: Whole | None = None  # the block after which states are sent; none: the first tap
    ratios: tuple[Count, ...] = (4, 8, 16)  # raw bytes by bytes sent
    sensed: Count = 400  # documents on which the sensitivity is taken
    floor: Positive = 0.1  # what a direction counts that seems to matter to nobody, beside the mean
    ridge: Positive = 1e-3  # likewise, of directions of a token's vector
    rows: Count = 256  # positions a batch
    held: Count = 4000  # positions of `tune` that decide which step was best
    measured: Count = 2000  # documents of `test` at most
    greedy: Count = 256  # of them, continued freely
    fit: FitConfig = FitConfig(steps=500, rate=3e-4, warmup=20, evaluate_every=250, save_every=250)
    seed: Seed = 0


def run(config: Config, needs: Mapping[str, Path], out: Path, group: Any) -> dict[str, Any]:
    model, harvest = teacher(needs["domain"]).model, needs["harvest"]
    given, held, test = (Features(harvest, role) for role in ("heads", "tune", "test"))
    tap = given.taps[0] if config.tap is None else config.tap
    given, held, test = (Onward(model, features, tap) for features in (given, held, test))
    metric = sensed(config, given, group)
    begun = Begun(given, karhunen.root(metric, config.floor), config.ridge, group)
    heads = {f"{ratio}x": begun.head(begun.bytes(ratio)) for ratio in config.ratios}
    rank, hosts = ranked(group)
    for number, ratio in enumerate(config.ratios):
        if number % hosts == rank:  # by one host: a value on the edge of two levels must not fall to either side
            learn(config, heads[f"{ratio}x"], begun, ratio, given, held, out / f"{ratio}x", needs, quiet=bool(rank))
    for number, (name, head) in enumerate(heads.items()):
        shared(head, out / name, group, number % hosts)
        saved.save(out / name, head.config, head)
    return measured(config, begun, heads, test, out, group)


def faults(config: Config, taps: Sequence[int], width: int) -> list[str]:
    """`width` is how many numbers a state has."""
    wrong = []
    if config.tap not in (None, *taps):
        wrong.append(f"tap is {config.tap}; states are kept after blocks {', '.join(map(str, taps))}")
    if not config.ratios or list(config.ratios) != sorted(set(config.ratios)) or config.ratios[0] < 2:
        wrong.append(f"ratios are {config.ratios}; whole numbers of 2 or more in rising order are needed")
    elif room(width, config.ratios[-1]) < 1:
        wrong.append(f"ratios are {config.ratios}; of a state of {2 * width} bytes the last leaves none")
    return wrong


def picked(count: int, some: int) -> np.ndarray:
    """Evenly."""
    return np.linspace(0, count - 1, min(count, some)).astype(int)


def sensed(config: Config, given: Onward, group: Any) -> np.ndarray:
    """D D: each host takes its share of the batches."""
    rank, size = ranked(group)
    documents = picked(len(given.features.begins), config.sensed)
    return totalled(group, given.sensitivity(documents.tolist(), config.seed, slice(rank, None, size)))


def learn(
    config: Config,
    head: transfer.Head,
    begun: Begun,
    ratio: int,
    given: Onward,
    held: Onward,
    out: Path,
    needs: Mapping[str, Path],
    quiet: bool,
) -> None:
    """To the best on held-out states."""
    root, tuned = mx.array(begun.root.astype(np.float32)), picked(held.features.count, config.held)

    def batch(of: Onward, at: np.ndarray) -> tuple[mx.array, ...]:
        return of.states(at), of.told(at), root

    def batches(step: int, micro: int) -> tuple[mx.array, ...]:
        rng = np.random.default_rng(drawn(config.seed, ratio, step, micro))
        return batch(given, rng.integers(given.features.count, size=config.rows))

    def scores() -> dict[str, float]:
        total = mx.zeros(2)
        for at in range(0, len(tuned), CHUNK):
            total = total + mx.stack(list(transfer.loss(head, *batch(held, tuned[at : at + CHUNK]))))
            mx.eval(total)
        summed, count = np.array(total).tolist()
        return {"loss": summed / count}

    made_of = made(config, needs) | {"bytes": head.bytes}
    train(head, transfer.loss, batches, config.fit, out, scores=scores, inputs=made_of, group=None, quiet=quiet)


def measured(
    config: Config, begun: Begun, heads: Mapping[str, transfer.Head], test: Onward, out: Path, group: Any
) -> dict[str, Any]:
    """On `test`, all codecs at once; `plots.json` has bytes against agreement."""
    width = begun.width
    codecs: dict[str, Codec] = {"raw": Raw(width), "int8": Integers(width, 8, width)}
    codecs |= {f"int{bits}": Integers(width, bits, GROUP) for bits in (4, 2)}
    codecs["one_byte"] = begun.head(1)  # nearly all that it says was there without it: the token, its keys and values
    for ratio in config.ratios:
        codecs[f"pca_{ratio}x"] = begun.head(begun.bytes(ratio), told=False, sensed=False)
        codecs[f"pca_token_{ratio}x"] = begun.head(begun.bytes(ratio), sensed=False)
    codecs |= {f"learned_{name}": head for name, head in heads.items()}
    documents = picked(len(test.features.begins), config.measured)
    found = kept(codecs, test, documents.tolist(), group)
    table = found.table()
    write_json(out / "plots.json", {"frontier": table})
    metrics: dict[str, Any] = {"tap": test.tap, "positions": len(found.cluster)}
    for name in heads:
        of = table[f"learned_{name}"]
        metrics |= {f"next_agreement_{name}": of["agreement"], f"next_agreement_{name}_interval": of["interval"]}
        metrics |= {f"kl_{name}": of["kl"], f"bytes_{name}": of["bytes"]}
        for other in ("pca", "pca_token"):
            more, share = found.gain(f"learned_{name}", f"{other}_{name}")
            metrics |= {f"over_{other}_{name}": more.value, f"over_{other}_{name}_interval": list(more.interval)}
            metrics |= {f"kl_by_{other}_{name}": share.value, f"kl_by_{other}_{name}_interval": list(share.interval)}
    first, some = next(iter(heads)), documents[picked(len(documents), config.greedy)]
    cluster = clusters(test.features)[test.features.begins[some]]
    free = mean(followed(heads[first], test, some.tolist(), GREEDY, group), cluster)
    metrics |= {f"greedy{GREEDY}_agreement_{first}": free.value}
    metrics |= {f"greedy{GREEDY}_agreement_{first}_interval": list(free.interval)}
    return metrics | {"baselines": {name: of for name, of in table.items() if not name.startswith("learned")}}
