"""The domain stage of a curriculum: the adapter trained on the run's rows, and what it gained and cost."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from agp import adapter_files
from agp.adapters import attach, detach, faults
from agp.data import Row
from agp.fingerprint import glance
from agp.models.decoder import Decoder
from agp.models.folder import find
from agp.models.load import Loaded
from agp.stats import bootstrap_mean
from agp.supervise import prepare
from curricula.ability import ability
from curricula.exchange import by_hosts, exchange, ranked
from curricula.stages import domain, rows

PLACES = ("model", "revision", "table", "data")
MEASURED = 200  # rows of each source
ABLE = "what the model can do"


def given(config: domain.Config) -> dict[str, Any]:
    return {"checkpoint": glance(find(config.model, config.revision))}


def unfit(config: domain.Config, model: Decoder) -> list[str]:
    try:
        return faults(model, domain.designed(config, model))
    except ValueError as e:
        return [str(e)]


def run(config: domain.Config, needs: Mapping[str, Path], out: Path, group: Any) -> dict[str, Any]:
    """What is measured is `test`: truth that nobody was trained on, and general rows for what must not be lost."""
    folder, rank, size = needs["rows"], *ranked(group)
    there = sorted(path.parent for path in folder.glob("*/train.jsonl"))
    config = replace(shared_out(config, size), data={path.name: str(path) for path in there})
    job = domain.prepared(config, size)
    steps = config.fit.steps
    with tqdm(total=steps, desc="domain", unit="step", disable=bool(rank), file=sys.stderr) as bar:

        def watch(row: dict) -> None:
            bar.update(row["step"] - bar.n)
            bar.set_postfix({k: f"{v:.3f}" for k, v in row.items() if k in ("loss", "held_loss")})

        report = domain.train(config, job, out, watch, group)
    if report.ended == "interrupted":
        raise KeyboardInterrupt
    exchange(group, [out / domain.ADAPTER / name for name in (adapter_files.FILE, adapter_files.CONFIG)])
    shutil.rmtree(out / domain.PREFIX, ignore_errors=True)
    model, found = job.loaded.model, rows.read(folder, "test")
    detach(model)

    def now() -> dict[str, np.ndarray]:
        each = by_hosts(group, list(found), lambda name: {"able": able(job.loaded, found[name], config.length)}, ABLE)
        return {name: of["able"] for name, of in zip(found, each, strict=True)}

    before = now()
    after = before
    if report.best_step != 0:  # what was written is measured, on every host, and not what training ended with
        saved = adapter_files.load(out / domain.ADAPTER)
        attach(model, saved.adapter, saved.arrays)
        model.eval()
        after = now()
    return {
        **compared(before, after),
        "weights": job.weights,
        "dtype": domain.dtype_of(config),
        "steps": report.step,
        "best_step": report.best_step,
    }


def shared_out(config: domain.Config, size: int) -> domain.Config:
    """What one host takes of the batch that a recipe names: a part of its rows, or some of its micro-batches."""
    if config.rows % size == 0:
        return replace(config, rows=config.rows // size)
    if config.fit.accumulate % size == 0:
        return replace(config, fit=replace(config.fit, accumulate=config.fit.accumulate // size))
    raise ValueError(
        f"{size} hosts cannot share out domain.rows={config.rows}, domain.fit.accumulate={config.fit.accumulate}: one"
        " of them must be a multiple of their number"
    )


def able(loaded: Loaded, given: list[Row], length: int) -> np.ndarray:
    """Of each document: tokens foreseen, the loss summed, and how many tokens there are. Rows are evenly chosen."""
    assert loaded.tokenizer is not None
    examples = prepare(given, loaded.tokenizer, length).examples
    picked = np.linspace(0, len(examples) - 1, min(MEASURED, len(examples))).astype(int)
    home = {row.place: row.document for row in given}
    names, which = np.unique([home[examples[i].place] for i in picked], return_inverse=True)
    found = np.zeros((len(names), 3))
    np.add.at(found, which, ability(loaded.model, [examples[i] for i in picked]))
    return found


def compared(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`loss_drop`: by which share the loss a token fell, a document counting once, however long it is; `general_drop`:
    points of general tokens no longer foreseen."""
    theirs = [name for name in before if name != rows.GENERAL]
    was, now = (np.concatenate([table[name] for name in theirs]) for table in (before, after))
    left = bootstrap_mean(now[:, 1] / now[:, 2], 0, was[:, 1] / was[:, 2])
    lost = bootstrap_mean(100 * (before[rows.GENERAL] - after[rows.GENERAL])[:, 0], 0, before[rows.GENERAL][:, 2])
    means = {
        name: {"before": table[:, 1].sum() / table[:, 2].sum(), "after": after[name][:, 1].sum() / table[:, 2].sum()}
        for name, table in before.items()
    }
    return {
        "loss_drop": 1 - left.value,
        "loss_drop_interval": [1 - left.interval[1], 1 - left.interval[0]],
        "general_drop": lost.value,
        "general_drop_interval": list(lost.interval),
        "loss": means,
    }
