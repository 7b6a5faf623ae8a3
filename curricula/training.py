"""How a head is trained within its stage: `fit` with a bar, to the best held-out loss, and what it is made of noted."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten
from tqdm import tqdm

from agp.losses import Sums
from agp.states import BEST, STATE, read_best
from agp.train import METRICS, Batches, FitConfig, fit
from curricula.exchange import handed
from curricula.runner import MANIFEST


def train(
    head: Any,
    loss: Callable[..., Sums],
    batches: Batches,
    fit_config: FitConfig,
    out: Path,
    *,
    scores: Callable[[], Mapping[str, float]],
    inputs: Mapping[str, Any],
    group: Any,
    quiet: bool = False,
) -> dict[str, Any]:
    """`head` ends with its best weights; the metrics say which step they are of."""
    rank = group.rank() if group is not None else 0
    with tqdm(total=fit_config.steps, desc=out.name, unit="step", disable=quiet or bool(rank), file=sys.stderr) as bar:

        def watch(row: dict) -> None:
            bar.update(row["step"] - bar.n)
            bar.set_postfix({k: f"{v:.3f}" for k, v in row.items() if k in ("loss", "held_loss")})

        report = fit(head, loss, batches, fit_config, out, scores=scores, inputs=inputs, watch=watch, group=group)
    if report.ended == "interrupted":
        raise KeyboardInterrupt
    handed(group, 0, [out / BEST])  # chips may round otherwise: all have what host 0 has
    read_best(out, head)
    head.eval()
    parameters: Any = tree_flatten(head.trainable_parameters())
    return {"parameters": sum(a.size for _, a in parameters), "best_step": report.best_step}


def shared(head: Any, out: Path, group: Any, owner: int) -> None:
    """What one host trained by itself, for all."""
    handed(group, owner, [out / name for name in (BEST, STATE, METRICS)])
    read_best(out, head)
    head.eval()


def made(config: Any, needs: Mapping[str, Path]) -> dict[str, Any]:
    """What a head is made of, as `inputs`: what was begun otherwise is not gone on with."""
    digests = {name: json.loads((stage / MANIFEST).read_text())["digest"] for name, stage in needs.items()}
    return {"config": asdict(config), "needs": digests}
