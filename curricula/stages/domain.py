"""The domain stage: a LoRA or DoRA adapter that makes the base speak the user's distribution."""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import mlx.core as mx

import agp
from agp import adapter_files, data
from agp.adapters import Adapter, adapted, attach, current
from agp.bounds import Count, Part, Positive, one_of, outside
from agp.features import Prefix, lowest
from agp.fingerprint import fingerprint
from agp.hosts import added
from agp.language import Given, held_out, look_up, loss
from agp.losses import Sums
from agp.models.decoder import Decoder
from agp.models.load import DTYPES, TABLES, Loaded
from agp.models.tensors import some
from agp.packing import Mixture, Row, Stream, assemble, drawn
from agp.quant import BITS
from agp.states import STATE, made_with, read_best
from agp.supervise import Example, prepare
from agp.targets import SCALES, SETS, design
from agp.train import FitConfig, Report, fit

ADAPTER, PREFIX = "adapter", "prefix"
NAME = re.compile(r"[\w-]+")  # of a source


@dataclass(frozen=True, kw_only=True)
class Config:
    """`data` are folders or data sets of the Hub by name; `weights` say how often each is drawn, equally by default."""

    model: str = ""
    revision: str | None = None
    dtype: Annotated[str, one_of(DTYPES)] | None = None
    quantize: Annotated[int, one_of(BITS)] | None = None
    table: Annotated[str, one_of(TABLES)] | None = None
    data: dict[str, str] = field(default_factory=dict)
    weights: dict[str, Positive] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)  # how data sets of the Hub call `text`, `prompt` and so on
    targets: str = "all"
    last: Count | None = None  # adapt only so many of the last blocks
    rank: Count = 8
    alpha: Positive = 16.0
    kind: Annotated[str, one_of(SCALES)] = "lora"
    dropout: Part = 0.0
    length: Count = 1024  # tokens a row
    rows: Count = 4  # a micro-batch, on each host
    packed: bool = True
    cut: bool = True  # rows that are too long lose their end; otherwise they are left out
    held_rows: Count = 64  # of each source, measured at every evaluation
    prefix: bool = True  # states of the frozen blocks are kept on disk, where rows are drawn more than once
    fit: FitConfig = FitConfig(steps=200, rate=2e-4, warmup=10)


class Job(NamedTuple):
    """All that is known before the first step."""

    loaded: Loaded
    weights: str  # digest of the base's
    sources: dict[str, data.Source]
    train: dict[str, list[Example]]
    held: dict[str, list[Row]]  # one a row, by length
    mixture: Mixture
    notes: list[str]


def prepared(config: Config, size: int = 1) -> Job:
    """Data first, for it fails soonest; then the model, with a fresh adapter on it."""
    if wrong := faults(config) + outside(config):
        raise ValueError("; ".join(wrong))
    sources = {name: data.read(where, name, config.columns) for name, where in config.data.items()}
    if leaks := data.leaks(sources.values()):
        raise ValueError(f"what is measured must not be trained on: {some(leaks, 500, '; ')}")
    loaded = agp.load(config.model, config.revision, dtype_of(config), config.quantize, config.table)
    tokenizer, limit = loaded.tokenizer, min(config.length, loaded.config.max_position_embeddings)
    if tokenizer is None:
        raise ValueError(f"{config.model} has no tokenizer, and text cannot be read without one")
    notes = ["float32, the fastest on a CPU; --dtype chooses otherwise"] if dtype_of(config) != config.dtype else []
    notes += [f"{name}: {note}" for name, source in sources.items() for note in source.notes]
    train, held = {}, {}
    for name, source in sources.items():
        for split, into in (("train", train), ("valid", held)):
            into[name], said = prepare(source.splits.get(split, []), tokenizer, limit, config.cut)
            notes += [f"{name}, {split}: {note}" for note in said]
    if empty := [name for name, found in train.items() if not found]:
        about = [note for note in notes if note.startswith(tuple(f"{name}, train" for name in empty))]
        raise ValueError(f"nothing is left to train on in {', '.join(empty)}: " + "; ".join(about))
    held = {
        name: [[e] for e in sorted(found[: config.held_rows], key=lambda e: len(e.ids))] for name, found in held.items()
    }
    weights = fingerprint(loaded.model)
    mx.random.seed(config.fit.seed)
    attach(loaded.model, designed(config, loaded.model))
    small = sum(part.rank < config.rank for part in adapted(loaded.model).values())
    if small and config.targets in SETS:
        notes.append(f"rank {config.rank} is more than {small} linears can have; theirs is the most they can")
    if config.fit.patience is not None and not any(held.values()):
        raise ValueError("fit.patience waits for a better held-out loss, and nothing is held out; give a valid.jsonl")
    together, seed = config.rows * size, config.fit.seed
    streams = {name: Stream(found, limit, config.packed, together, seed) for name, found in train.items()}
    shares = {name: config.weights.get(name, 1.0) for name in train}
    return Job(loaded, weights, sources, train, held, Mixture(streams, shares, together, seed), notes)


def designed(config: Config, model: Decoder) -> Adapter:
    given: dict[str, Any] = {name: getattr(config, name) for name in ("last", "rank", "alpha", "kind", "dropout")}
    return design(model, config.targets, **given)


def dtype_of(config: Config) -> str | None:
    """As asked for; else as stored, but bfloat16 takes a CPU ten times as long."""
    return "float32" if config.dtype is None and mx.default_device() == mx.cpu else config.dtype


def faults(config: Config) -> list[str]:
    wrong = [] if config.model else ["model is missing: a checkpoint folder or a Hub id"]
    wrong += [] if config.data else ["data is missing: a folder with train.jsonl"]
    if odd := [name for name in config.data if not NAME.fullmatch(name) or name == "loss"]:
        wrong.append(
            f"data: a source cannot be called {', '.join(map(repr, odd))}: letters, digits, - and _, and not 'loss'; "
            "--data NAME=DIR gives another name"
        )
    if strange := sorted(config.weights.keys() - config.data.keys()):
        wrong.append(f"weights name {', '.join(strange)}; the sources are {', '.join(config.data)}")
    if strange := sorted(config.columns.keys() - set().union(*data.LAYOUTS.values(), data.MORE)):
        wrong.append(
            f"columns name {', '.join(strange)}; they are {', '.join(sorted(set().union(*data.LAYOUTS.values())))}"
        )
    if config.columns and not any(data.on_hub(where) for where in config.data.values()):
        wrong.append("columns are of data sets of the Hub, and all sources are folders here; leave them out")
    if empty := [name for name, theirs in config.columns.items() if not theirs]:
        wrong.append(f"columns.{empty[0]} is empty; the name of a column is needed")
    return wrong


def holds(config: Config, job: Job, size: int = 1) -> dict[str, Any]:
    """What a run is made of: a resumed one must have the same, and every host of it."""
    places = ("model", "revision", "table", "data", "fit")  # digests say what lies there, and `fit` has its own say
    settings = {name: value for name, value in asdict(config).items() if name not in places}
    found = {name: source.digest for name, source in job.sources.items()}
    return {"data": found, "weights": job.weights, "settings": settings, "hosts": size}


def resumable(config: Config, job: Job, out: Path, size: int = 1) -> None:
    """Whether `out` is new, or holds a run of the same: said before anything is begun."""
    if (out / ADAPTER).exists() and not (out / STATE).exists():
        raise ValueError(f"{out} holds an adapter and no run that made it; give another folder, or it would be lost")
    if (out / STATE).exists():
        made_with(out / STATE, config.fit.decides(), holds(config, job, size))


def train(config: Config, job: Job, out: Path, watch: Callable[[dict], None], group: Any = None) -> Report:
    """Train, and write the best adapter to `out/adapter`."""
    model, (rank, size) = job.loaded.model, (group.rank(), group.size()) if group is not None else (0, 1)
    draw = drawn(job.mixture, config.rows, config.fit.accumulate, rank, size)
    prefix = frozen(config, job, out / PREFIX, size)
    start = prefix.stop if prefix else 0

    def given(rows: list[Row]) -> Given:
        batch = assemble(rows)
        return look_up(model, batch) | (prefix.given(rows, batch.tokens.shape[1]) if prefix else {})

    def scores() -> dict[str, float]:
        return measured(lambda rows: held_out(model, given(rows), start), config.rows, job.held, group)

    report = fit(
        model,
        partial(loss, start=start),
        lambda step, micro: (given(draw(step, micro)),),
        config.fit,
        out,
        scores=scores if any(job.held.values()) else None,
        inputs=holds(config, job, size),
        watch=watch,
        group=group,
    )
    if report.ended != "interrupted" and not rank and report.best_step != 0:
        save(config, job, out, report)
    return report


def frozen(config: Config, job: Job, folder: Path, size: int = 1) -> Prefix | None:
    """The blocks that never change, where there are some and rows are drawn more than once."""
    stop, rows = lowest(job.loaded.model), [row for stream in job.mixture.streams for row in stream.all_rows()]
    if not config.prefix or not stop or config.fit.steps * config.fit.accumulate * config.rows * size <= len(rows):
        return None
    held = [row for found in job.held.values() for row in found]
    made_by = {"weights": job.weights, "agp": agp.__version__}
    return Prefix(job.loaded.model, stop, [*rows, *held], folder, made_by)


def measured(
    held_out: Callable[[list[Row]], Sums], rows: int, held: Mapping[str, list[Row]], group: Any
) -> dict[str, float]:
    """Mean loss a token, of each source and of all; each host takes its share of the batches."""
    rank, size = (group.rank(), group.size()) if group is not None else (0, 1)
    sums = {}
    for name, found in held.items():
        total = mx.zeros(2)
        for batch in [found[at : at + rows] for at in range(0, len(found), rows)][rank::size]:
            total = total + mx.stack(list(held_out(batch)))
            mx.eval(total)
        sums[name] = total
    sums = {name: total.tolist() for name, total in added(group, sums).items() if held[name]}
    whole = sum(total for total, _ in sums.values()) / sum(count for _, count in sums.values())
    return {"loss": whole} | ({name: total / count for name, (total, count) in sums.items()} if len(sums) > 1 else {})


def save(config: Config, job: Job, out: Path, report: Report) -> None:
    """The best weights where something was held out, else the last; the model is left with them."""
    if report.best_step is not None:
        read_best(out, job.loaded.model)
    about = {
        "base": config.model,
        "revision": config.revision,
        "agp": agp.__version__,
        "step": report.step if report.best_step is None else report.best_step,
        "held_loss": report.best,
        "data": {name: source.digest for name, source in job.sources.items()},
    }
    adapter_files.save(out / ADAPTER, job.loaded.model_type, *current(job.loaded.model), **about)
