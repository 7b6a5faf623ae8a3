"""The one training loop: everything trained in this project is trained here.

A loss returns its sum and over how much weight; only sums cross micro-batches and hosts, so how a batch is cut changes
nothing. A step is a function of its number, so a run that was broken off and resumed ends in the same bits.
"""

import json
import math
import operator
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map, tree_reduce

from agp.bounds import Count, Positive, Seed, Share, Weight, Whole, outside
from agp.hosts import GO_ON, HostLost, added
from agp.losses import Sums
from agp.states import State, keep_best, keep_rows, trained

Loss = Callable[..., Sums]  # (model, *batch)
Batches = Callable[[int, int], tuple[Any, ...]]  # (step, micro-batch) -> arrays that the loss takes
Scores = Callable[[], Mapping[str, float]]  # held-out losses; "loss" is the one that decides
METRICS = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    steps: Count
    rate: Positive = 1e-4  # the highest
    warmup: Whole = 0  # steps up to it
    floor: Share = 0.1  # of the rate, at the end of the cosine
    accumulate: Count = 1  # micro-batches a step
    clip: Positive = 1.0  # longest gradient
    weight_decay: Weight = 0.0
    seed: Seed = 0
    log_every: Count = 10
    save_every: Count = 100
    evaluate_every: Count = 100
    patience: Count | None = None  # evaluations without a better one before it ends

    def decides(self) -> dict[str, Any]:
        """What a resumed run must have had: all but how often it writes."""
        return {k: v for k, v in asdict(self).items() if k not in ("log_every", "save_every")}

    def rate_at(self, step: int) -> float:
        """Of a step, counted from 1: a straight line up, then half a cosine down."""
        if step <= self.warmup:
            return self.rate * step / self.warmup
        gone = (step - self.warmup - 1) / max(1, self.steps - self.warmup - 1)
        return self.rate * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * gone)) / 2)


class Report(NamedTuple):
    step: int  # the last one done
    loss: float  # of its batch
    best: float | None  # held-out loss
    best_step: int | None
    ended: str  # "done", "early" or "interrupted"


def fit(
    model: Any,
    loss: Loss,
    batches: Batches,
    config: FitConfig,
    out: Path | str,
    *,
    scores: Scores | None = None,
    inputs: Mapping[str, Any] | None = None,
    watch: Callable[[dict], None] = lambda row: None,
    group: Any = None,
) -> Report:
    """Train what is unfrozen in `model`; go on from `out` if it holds a state made with this config and inputs."""
    if wrong := outside(config):
        raise ValueError("; ".join(wrong))
    run = Run(model, loss, config, Path(out), inputs or {}, group)
    if not run.rank:
        keep_rows(run.out / METRICS, run.state.step)
    try:
        with interruptible() as asked:
            ended = run.go(batches, scores, asked, watch)
            ended = "interrupted" if asked() else ended  # in the last step, or while that was judged
    except HostLost as e:  # nothing was updated since the last whole step
        run.state.save(run.out, model, run.optimizer)
        raise HostLost(f"{e}. Step {run.state.step} is saved in {run.out}. {GO_ON}") from e
    return Report(run.state.step, run.state.loss, run.state.best, run.state.best_step, ended)


class Run:
    """A model on its way, and all that has to be kept for it to go on."""

    def __init__(self, model: Any, loss: Loss, config: FitConfig, out: Path, inputs: Mapping[str, Any], group: Any):
        self.model, self.config, self.out, self.group = model, config, out, group
        self.rank, self.size = (group.rank(), group.size()) if group is not None else (0, 1)
        self.optimizer = optim.AdamW(config.rate, weight_decay=config.weight_decay, bias_correction=True)
        self.optimizer.init(model.trainable_parameters())
        self.state = State.load(out, model, self.optimizer, config.decides(), inputs)
        if self.size > 1:
            self.state.share(group, out, model, self.optimizer)
        model.train()
        graph = nn.value_and_grad(model, lambda *batch: loss(model, *batch))
        state = [model.state, mx.random.state]
        self.micro = mx.compile(graph, inputs=state, outputs=state)

    def go(
        self, batches: Batches, scores: Scores | None, asked: Callable[[], bool], watch: Callable[[dict], None]
    ) -> str:
        """To the end; how it ended."""
        config, state, stop = self.config, self.state, False
        while True:
            if scores is not None and self.due():
                self.judge(scores, watch)
            late = config.patience is not None and state.worse >= config.patience
            ended = "early" if late else "interrupted" if stop else "done" if state.step == config.steps else None
            if state.step != state.saved and (ended or state.step % config.save_every == 0):
                state.save(self.out, self.model, self.optimizer)
            if ended:
                return ended
            stop = self.step(batches, asked, watch)

    def due(self) -> bool:
        """Whether this step has to be evaluated still."""
        state, config = self.state, self.config
        return state.evaluated != state.step and (state.step % config.evaluate_every == 0 or state.step == config.steps)

    def step(self, batches: Batches, asked: Callable[[], bool], watch: Callable[[dict], None]) -> bool:
        """One update; whether some host was asked to stop."""
        started, number = time.perf_counter(), self.state.step + 1
        total = None
        for micro in range(self.config.accumulate):
            mx.random.seed(drawn(self.config.seed, number, micro, self.rank))
            (summed, count), grads = self.micro(*batches(number, micro))
            new = [mx.stack([summed, count]), grads]
            total = new if total is None else tree_map(operator.add, total, new)
            mx.eval(total)  # or MLX, which is lazy, would hold all micro-batches at once
        assert total is not None
        mine = [mx.concatenate([total[0], mx.array([float(asked())])]), total[1]]
        sums, grads = added(self.group, mine)
        summed, count = real(sums[0]), real(sums[1])
        value, norm = (x / count if count else math.nan for x in (summed, length(grads)))
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise FloatingPointError(self.broken(number, value, norm))
        self.optimizer.learning_rate = mx.array(self.config.rate_at(number))
        scale = min(1.0, self.config.clip / norm if norm else 1.0) / count
        self.optimizer.update(self.model, tree_map(lambda g: g * scale, grads))
        mx.eval(self.model.trainable_parameters(), self.optimizer.state)
        self.state.step, self.state.loss = number, value
        seconds = time.perf_counter() - started
        self.tell(watch, step=number, loss=value, norm=norm, rate=self.config.rate_at(number), count=count,
                  seconds=seconds, peak_bytes=mx.get_peak_memory())  # fmt: skip
        return real(sums[2]) > 0

    def broken(self, number: int, value: float, norm: float) -> str:
        what = f"the loss is {value} and its gradient {norm} long at step {number}"
        kept = (
            f"The last good state is step {self.state.saved} in {self.out}"
            if self.state.saved
            else "No state was saved yet"
        )
        return f"{what}; nothing was updated. {kept}. A lower rate, or a longer warm-up, may help"

    def judge(self, scores: Scores, watch: Callable[[dict], None]) -> None:
        self.model.eval()
        found = dict(scores())
        self.model.train()
        if self.state.judge(found["loss"]):
            keep_best(self.out, trained(self.model), self.state)
        self.tell(watch, step=self.state.step, **{f"held_{name}": value for name, value in found.items()})

    def tell(self, watch: Callable[[dict], None], **row: Any) -> None:
        if self.rank:
            return
        watch(row)
        due = row["step"] % self.config.log_every == 0 or row["step"] == self.config.steps or "held_loss" in row
        if due:
            self.out.mkdir(parents=True, exist_ok=True)
            with (self.out / METRICS).open("a") as file:
                file.write(json.dumps(row) + "\n")


def real(x: Any) -> float:
    return x.item()


def length(grads: Any) -> float:
    total: Any = tree_reduce(lambda total, g: total + mx.square(g).sum(), grads, mx.array(0.0))
    return real(mx.sqrt(total))


def drawn(*numbers: int) -> int:
    """A seed of its own for each host, step and micro-batch."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def interruptible():
    """Ctrl-C lets the step end and be saved; a second one does not wait."""
    asked = []

    def note(number, frame):
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {sort: signal.signal(sort, note) for sort in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    except ValueError:  # not in the main thread, where signals do not come
        before = {}
    try:
        yield lambda: bool(asked)
    finally:
        for sort, handler in before.items():
            signal.signal(sort, handler)
