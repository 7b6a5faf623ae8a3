"""The domain stage: a LoRA or DoRA adapter that makes the base speak the user's distribution."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_unflatten

import agp
from agp import adapter_files, data
from agp.adapters import attach, current
from agp.language import arrays, held_out, loss
from agp.models.load import Loaded
from agp.packing import Batch, Mixture, Stream, assemble, batches
from agp.states import BEST
from agp.supervise import Example, prepare
from agp.targets import design
from agp.train import FitConfig, Report, fit

ADAPTER = "adapter"


@dataclass(frozen=True, kw_only=True)
class Config:
    """`data` is a folder, or several by name; `weights` say how often each is drawn (equally, by default)."""

    model: str = ""
    revision: str | None = None
    dtype: str | None = None
    quantize: int | None = None
    table: str | None = None
    data: dict[str, str] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    targets: str = "all"
    last: int | None = None  # adapt only so many of the last blocks
    rank: int = 8
    alpha: float = 16.0
    kind: str = "lora"
    dropout: float = 0.0
    length: int = 1024  # tokens a row
    rows: int = 4  # a micro-batch, on each host
    packed: bool = True
    cut: bool = True  # rows that are too long lose their end; otherwise they are left out
    held_rows: int = 64  # of each source, measured at every evaluation
    fit: FitConfig = FitConfig(steps=200, rate=2e-4, warmup=10)


class Job(NamedTuple):
    """All that is known before the first step."""

    loaded: Loaded
    sources: dict[str, data.Source]
    train: dict[str, list[Example]]
    held: dict[str, list[Example]]
    mixture: Mixture
    notes: list[str]


def prepared(config: Config, size: int = 1) -> Job:
    """Data first, for it fails soonest; then the model, with a fresh adapter on it."""
    if wrong := faults(config):
        raise ValueError("; ".join(wrong))
    sources = {name: data.read(folder, name) for name, folder in config.data.items()}
    loaded = agp.load(config.model, config.revision, config.dtype, config.quantize, config.table)
    tokenizer, limit = loaded.tokenizer, min(config.length, loaded.config.max_position_embeddings)
    if tokenizer is None:
        raise ValueError(f"{config.model} has no tokenizer, and text cannot be read without one")
    notes = [f"{name}: {note}" for name, source in sources.items() for note in source.notes]
    train, held = {}, {}
    for name, source in sources.items():
        for split, into in (("train", train), ("valid", held)):
            into[name], said = prepare(source.splits.get(split, []), tokenizer, limit, config.cut)
            notes += [f"{name}, {split}: {note}" for note in said]
    if empty := [name for name, found in train.items() if not found]:
        raise ValueError(f"nothing is left to train on in {', '.join(empty)}: " + "; ".join(notes))
    mx.random.seed(config.fit.seed)
    targets = {"last": config.last, "rank": config.rank, "alpha": config.alpha, "kind": config.kind}
    attach(loaded.model, design(loaded.model, config.targets, dropout=config.dropout, **targets))
    together, seed = config.rows * size, config.fit.seed
    streams = {name: Stream(found, limit, config.packed, together, seed) for name, found in train.items()}
    weights = {name: config.weights.get(name, 1.0) for name in train}
    return Job(loaded, sources, train, held, Mixture(streams, weights, together, seed), notes)


def faults(config: Config) -> list[str]:
    wrong = [] if config.model else ["model is missing: a checkpoint folder or a Hub id"]
    wrong += [] if config.data else ["data is missing: a folder with train.jsonl"]
    if strange := sorted(config.weights.keys() - config.data.keys()):
        wrong.append(f"weights name {', '.join(strange)}; the sources are {', '.join(config.data)}")
    if bad := [name for name, w in config.weights.items() if w <= 0]:
        wrong.append(f"the weights of {', '.join(bad)} must be above 0")
    for name in ("length", "rows", "held_rows"):
        if getattr(config, name) < 1:
            wrong.append(f"{name} is {getattr(config, name)}; 1 or more is needed")
    return wrong + config.fit.faults()


def train(config: Config, job: Job, out: Path, watch: Callable[[dict], None], group: Any = None) -> Report:
    """Train, and write the best adapter to `out/adapter`."""
    model, (rank, size) = job.loaded.model, (group.rank(), group.size()) if group is not None else (0, 1)
    draw = batches(job.mixture, config.rows, config.fit.accumulate, rank, size)
    scores = (lambda: measured(model, dict(held_batches(config, job)))) if any(job.held.values()) else None
    inputs = {name: source.digest for name, source in job.sources.items()}
    settings = asdict(config) | {"fit": None}
    report = fit(
        model,
        loss,
        lambda step, micro: arrays(model, draw(step, micro)),
        config.fit,
        out,
        scores=scores,
        inputs={"data": inputs, "settings": settings, "hosts": size},
        watch=watch,
        group=group,
    )
    if report.ended != "interrupted" and not rank:
        save(config, job, out, report)
    return report


def held_batches(config: Config, job: Job) -> Iterator[tuple[str, list[Batch]]]:
    for name, found in job.held.items():
        rows = [[example] for example in sorted(found[: config.held_rows], key=lambda e: len(e.ids))]
        if rows:
            yield name, [assemble(rows[at : at + config.rows]) for at in range(0, len(rows), config.rows)]


def measured(model: Any, held: Mapping[str, list[Batch]]) -> dict[str, float]:
    """Mean loss a token, of each source and of all."""
    sums, scores = [], {}
    for name, found in held.items():
        parts = [held_out(model, *arrays(model, batch)) for batch in found]
        mx.eval(parts)
        total, count = (sum(part[k].item() for part in parts) for k in (0, 1))
        scores[name] = total / count
        sums.append((total, count))
    return {"loss": sum(t for t, _ in sums) / sum(c for _, c in sums), **(scores if len(scores) > 1 else {})}


def save(config: Config, job: Job, out: Path, report: Report) -> None:
    """The best weights where something was held out, else the last; the model is left with them."""
    if report.best_step is not None:
        best: Any = mx.load(str(out / BEST))
        job.loaded.model.update(tree_unflatten(list(best.items())))
    about = {
        "base": config.model,
        "revision": config.revision,
        "agp": agp.__version__,
        "step": report.best_step or report.step,
        "held_loss": report.best,
        "data": {name: source.digest for name, source in job.sources.items()},
    }
    adapter_files.save(out / ADAPTER, job.loaded.model_type, *current(job.loaded.model), **about)
