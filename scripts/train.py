"""Train: a whole curriculum by its recipe, or the domain adapter alone on your own rows.

agp train                                   the recipe `tiny`, on what is shipped
agp train tiny --until harvest domain.rank=4
agp train tiny --from domain domain.fit.steps=80
agp train tiny --dry-run

agp train gemma4_e2b --dry-run                             with no data and no download: memory, disk, time
agp train gemma4_e2b --data notes/ --data chat=talks/      on your own rows: docs/your-own-data.md
agp train gemma4_e4b --data notes/ --after runs/gemma4_e2b

agp train domain --model google/gemma-4-E2B-it --quantize 4 --data notes/ --out runs/notes
agp train domain --model tiny-gemma4 --data chat=a/ --data code=b/ --out runs/x kind=dora fit.steps=500
agp train domain --model tiny-gemma4 --data notes/ --out runs/notes --dry-run

agp train domain --model google/gemma-4-E2B-it --data owner/name columns.prompt=question columns.completion=answer

A folder of data holds train.jsonl and, if you have them, valid.jsonl and test.jsonl, with rows in one of three layouts:
{"messages": [...]}, {"prompt": ..., "completion": ...} or {"text": ...}. The same command again goes on where it ended.
targets= is all, attention, mlp, o_proj, or a JSON file of ranks by path: {"layers.0.mlp.up_proj": 4}.
Under mlx.launch all hosts train as one: docs/two-macs.md.
"""

import argparse
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, fields, is_dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import mlx.core as mx
from tqdm import tqdm

from agp.adapters import adapted, trainable
from agp.artifacts import alone, unwritable, version
from agp.hosts import announced, joined, told
from agp.language import look_up
from agp.memory import available
from agp.models.load import DTYPES, TABLES
from agp.overrides import from_file, override
from agp.packing import assemble, drawn
from agp.peak import step_bytes
from agp.quant import BITS, quantized_paths
from agp.supervise import Example
from curricula import recipes
from curricula.stages import domain
from scripts import recipe
from scripts.asked import all_named, some_path
from scripts.machine import timed


def add_arguments(parser) -> None:
    names = ", ".join(recipes.NAMES)
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="WHAT | name=value",
        help=f"a recipe ({names}; default: tiny) or `domain`; and settings. Of domain: {settings(domain.Config())}",
    )
    parser.add_argument("--model", metavar="PATH", help="a checkpoint folder or a Hub id")
    parser.add_argument(
        "--data", action="append", default=[], metavar="[NAME=]DIR", help="a folder of rows, or a Hub id; repeatable"
    )
    parser.add_argument("--out", type=some_path, metavar="DIR", help="where the run is kept (default: runs/WHAT)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a TOML file of settings")
    parser.add_argument("--dtype", choices=DTYPES, help="default: as stored; on a CPU float32, the fastest there")
    parser.add_argument(
        "--quantize", type=int, choices=BITS, metavar="BITS", help="quantize while loading: 2, 3, 4, 5, 6 or 8"
    )
    parser.add_argument("--table", choices=TABLES, help="where per-layer embeddings stay (default: as memory allows)")
    parser.add_argument(
        "--wait",
        type=float,
        default=120,
        metavar="SECONDS",
        help="for a host that does not come, or has gone silent (default: 120)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and what memory, disk and time it would take"
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="of this machine, that run a recipe together (default: on a CPU of two cores or more 2, else 1); another "
        "number makes the same but for rounding",
    )
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage of the recipe")
    parser.add_argument(
        "--from", dest="again", metavar="STAGE", help="make it and what follows again; what is there is kept beside"
    )
    parser.add_argument(
        "--after", type=some_path, metavar="DIR", help="the run that must have passed before this one (gemma4_e4b)"
    )
    parser.add_argument("--past-gate", metavar="STAGE", help="go on though its gate is closed; needs --why")
    parser.add_argument("--why", metavar="TEXT", help="the reason, kept in the manifest")


parse = argparse.ArgumentParser.parse_intermixed_args  # settings may stand anywhere


def settings(config) -> str:
    """All names that `name=value` knows, with their defaults."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return ", ".join(f"{k}.({settings(v)})" if is_dataclass(v) else f"{k}={v}" for k, v in values.items())


def run(args) -> int:
    names = [word for word in args.settings if "=" not in word]
    args.settings = [word for word in args.settings if "=" in word]
    known = (*recipes.NAMES, "domain")
    if len(names) > 1 or not set(names) <= set(known):
        raise ValueError(f"{' '.join(names)}: one of {', '.join(known)} is needed, and settings as name=value")
    if names == ["domain"]:
        return adapt(args)
    return recipe.run(args, *(names or ["tiny"]))


def adapt(args) -> int:
    """The domain adapter alone."""
    for name in ("until", "again", "after", "past_gate", "why"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{'from' if name == 'again' else name.replace('_', '-')} is of recipes; leave it out")
    config = from_file(domain.Config(), args.config) if args.config else domain.Config()
    given = {name: getattr(args, name) for name in ("model", "dtype", "quantize", "table")}
    config = replace(config, **{name: value for name, value in given.items() if value is not None})
    if args.data:
        config = replace(config, data=all_named(args.data))
    config = override(config, args.settings)
    out = args.out or Path("runs/domain")
    if wrong := unwritable(out):
        raise ValueError(f"--out {out}: {wrong}")
    if not 0 < args.wait < 1e6:
        raise ValueError(f"--wait is {args.wait}; seconds above 0, and fewer than a million, are needed")
    hosts = None if args.dry_run else told()
    size, first = (hosts.size, not hosts.rank) if hosts else (1, True)
    with announced(hosts, args.wait):
        job = domain.prepared(config, size)
        domain.resumable(config, job, out, size)
    for note in job.notes if first else ():
        print(note, file=sys.stderr)
    if args.dry_run:
        if first:
            preview(config, job)
        return 0
    if first and (why := too_large(config, job)):
        print(f"agp: {why}", file=sys.stderr)
    held = {**domain.holds(config, job, size), "fit": asdict(config.fit), "versions": versions()}
    own = alone(out) if first else nullcontext()
    with joined(hosts, held, args.wait) as group, own, Bar(config.fit.steps, hidden=not first) as bar:
        report = domain.train(config, job, out, bar.show, group)
    if report.ended == "interrupted":
        print(f"stopped and saved after step {report.step} in {out}; the same command goes on", file=sys.stderr)
        return 130
    if first:
        print(summary(report, out))
    return int(report.best_step == 0)


def versions() -> dict[str, str | None]:
    return {name: version(name) for name in ("agp", "mlx")}


def summary(report, out: Path) -> str:
    if report.best_step == 0:
        held = f"the held-out loss was best before the first step, {report.best:.4f}"
        return f"nothing was gained in {report.step} steps: {held}. No adapter was written; a lower rate may help"
    ended = {"done": "done", "early": "ended early, for want of a better held-out loss,"}[report.ended]
    best = f"; the best held-out loss, {report.best:.4f}, was after step {report.best_step}" if report.best else ""
    return f"{ended} after step {report.step}{best}\nadapter: {out / domain.ADAPTER}  (agp generate --adapter tries it)"


class Bar:
    """Steps done, loss, supervised tokens a second, peak memory, and the time left."""

    def __init__(self, steps: int, hidden: bool = False):
        self.bar = tqdm(total=steps, unit="step", file=sys.stderr, dynamic_ncols=True, disable=hidden)
        self.said: dict[str, str] = {}

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def show(self, row: Mapping) -> None:
        if "held_loss" in row:
            self.said["held out"] = f"{row['held_loss']:.3f}"
        else:
            self.said |= {"loss": f"{row['loss']:.3f}", "tok/s": f"{row['count'] / row['seconds']:.0f}"}
            self.said["peak"] = f"{row['peak_bytes'] / 1e9:.2f} GB"
            self.bar.update(row["step"] - self.bar.n)
        self.bar.set_postfix(self.said)


def preview(config: domain.Config, job: domain.Job) -> None:
    """What a dry run says: parameters, memory, time, and three rows with what is learned marked."""
    model = job.loaded.model
    parts = adapted(model)
    print(f"{config.kind} on {len(parts)} linears, {trainable(model):,} trained parameters")
    for name, found in job.train.items():
        learned = sum(int(e.learned[1:].sum()) for e in found)
        tokens = sum(len(e.ids) for e in found)
        told = f"{len(found)} rows, {tokens:,} tokens, {learned:,} of them learned"
        print(f"{name}: {told}; {len(job.held[name])} rows to measure on")
    shares = {name: config.weights.get(name, 1.0) for name in job.train}
    if len(shares) > 1:
        drawn_from = (f"{name} {share / sum(shares.values()):.0%}" for name, share in shares.items())
        print(f"drawn from: {', '.join(drawn_from)}")
    turns = [found[at : at + 1] for at in range(3) for found in job.train.values()]  # of each source, then again
    for example in [e for turn in turns for e in turn][:3]:
        print(f"\n{example.place}, learned between >>> and <<<:\n{marked(example, job.loaded.tokenizer)}")
    if why := too_large(config, job):
        print(f"\n{why}; so none is tried here")
        return
    batch = look_up(model, assemble(drawn(job.mixture, config.rows, 1)(1, 0)))
    mx.reset_peak_memory()
    seconds = timed(model, batch)
    whole = seconds * config.fit.steps * config.fit.accumulate
    print(f"\none micro-batch takes {seconds:.1f} s and {mx.get_peak_memory() / 1e9:.2f} GB at its peak")
    told = f"{whole / 60:.0f} minutes" if whole >= 90 else f"{whole:.0f} s"
    print(f"{config.fit.steps} steps of {config.fit.accumulate}: about {told}")


def too_large(config: domain.Config, job: domain.Job) -> str | None:
    if (needed := estimated(job.loaded.model, config, job)) <= available():
        return None
    return (
        f"a step would take about {needed / 1e9:.1f} GB, and {available() / 1e9:.1f} GB are there: fewer rows (now "
        f"{config.rows}), a smaller length (now {config.length}) or --quantize need less"
    )


def estimated(model, config: domain.Config, job: domain.Job) -> float:
    """Bytes: what is held now, two moments of each trained number, and the step with the longest rows."""
    learned, packed = trainable(model), bool(quantized_paths(model))
    length = max(sum(len(e.ids) for e in row) for stream in job.mixture.streams for row in stream.all_rows())
    return mx.get_active_memory() + 8 * learned + step_bytes(model.config, config.rows, length, learned, packed)


def marked(example: Example, tokenizer) -> str:
    shown = []
    for learned, run in groupby(zip(example.learned.tolist(), example.ids.tolist(), strict=True), key=itemgetter(0)):
        text = tokenizer.decode([token for _, token in run], special=True)
        shown.append(f">>>{text}<<<" if learned else text)
    return "".join(shown)
