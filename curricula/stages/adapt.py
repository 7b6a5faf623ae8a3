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
from agp.adapters import detach
from agp.fingerprint import glance
from agp.models.folder import find
from agp.models.load import Loaded
from agp.stats import bootstrap_mean
from agp.supervise import Example, prepare
from curricula.ability import ability
from curricula.exchange import exchange
from curricula.stages import domain, rows

PLACES = ("model", "revision", "table", "data")
MEASURED = 400  # documents of each source


def given(config: domain.Config) -> dict[str, Any]:
    return {"checkpoint": glance(find(config.model, config.revision))}


def run(config: domain.Config, needs: Mapping[str, Path], out: Path, group: Any) -> dict[str, Any]:
    """What is measured is `test`: truth that nobody was trained on, and general rows for what must not be lost."""
    folder, rank, size = needs["rows"], *((group.rank(), group.size()) if group is not None else (0, 1))
    there = sorted(path.parent for path in folder.glob("*/train.jsonl"))
    config = replace(config, data={path.name: str(path) for path in there})
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
    found = {name: prepared(of, job.loaded, config.length) for name, of in rows.read(folder, "test").items()}
    after = {name: ability(job.loaded.model, examples) for name, examples in found.items()}
    detach(job.loaded.model)
    before = {name: ability(job.loaded.model, examples) for name, examples in found.items()}
    return {
        **compared(before, after),
        "weights": job.weights,
        "dtype": domain.dtype_of(config),
        "steps": report.step,
        "best_step": report.best_step,
    }


def prepared(given: list, loaded: Loaded, length: int) -> list[Example]:
    """Evenly chosen ones."""
    assert loaded.tokenizer is not None
    examples = prepare(given, loaded.tokenizer, length).examples
    picked = np.linspace(0, len(examples) - 1, min(MEASURED, len(examples))).astype(int) if examples else []
    return [examples[i] for i in picked]


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
