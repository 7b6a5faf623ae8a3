"""Train a shape: resumable, extendable (warm up, hold, decay only on a branch), everything a function of the step."""

import json
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from scripts.tiny import network, shapes
from scripts.tiny.attention import masks
from scripts.tiny.batches import Batches
from scripts.tiny.optimizer import Optimizer

STATE = "state.safetensors"
WARMUP = 150
FULL_SHARE = 0.4  # how often the whole model trains; its nested ones share the rest


@dataclass(frozen=True)
class Plan:
    shape: str
    state: Path
    tokenizer: Path
    steps: int  # where to stop
    decay_from: int | None = None  # a finishing branch: the rate falls to zero from here to `steps`
    save_seconds: float = 240.0
    muon: bool = True
    compile: bool = True
    peak: float = 1.0


def rate(step: int, plan: Plan) -> float:
    """Relative learning rate of a step (counted from 1)."""
    value = plan.peak * min(1.0, step / WARMUP)
    if plan.decay_from is None or step <= plan.decay_from:
        return value
    return value * max(0.0, (plan.steps - step + 1) / (plan.steps - plan.decay_from))


def regime_of(step: int, shape: str) -> str:
    """Which nested model a step trains; the whole one more often than any other."""
    names = list(shapes.ladder(shape))
    rng = Random(f"{shape}/regime/{step}")
    return "full" if len(names) == 1 or rng.random() < FULL_SHARE else rng.choice(names[1:])


def save(path: Path, step: int, model, optimizer: Optimizer, plan: Plan) -> None:
    """Weights, optimizer and step in one file, by rename: a state that exists is whole."""
    path.mkdir(parents=True, exist_ok=True)
    arrays = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    arrays |= {f"optimizer.{n}": x for n, x in optimizer.state.items()}
    about = {"step": str(step), "shape": plan.shape, "muon": str(plan.muon), "threads": str(torch.get_num_threads())}
    part = path / (STATE + ".part")
    save_file({n: x.contiguous() for n, x in arrays.items()}, part, metadata=about)
    part.replace(path / STATE)


@torch.no_grad()
def load(path: Path, model, optimizer: Optimizer | None, shape: str) -> int:
    """Put a saved state into model and optimizer; the step it was saved after, 0 when there is none."""
    file = path / STATE
    if not file.exists():
        return 0
    with safe_open(file, "pt") as stored:
        about = stored.metadata()
        if about["shape"] != shape:
            raise ValueError(f"{file} is a state of {about['shape']}, asked for {shape}; give another --state")
        targets = {f"model.{n}": p for n, p in model.named_parameters()}
        if optimizer is not None:
            targets |= {f"optimizer.{n}": x for n, x in optimizer.state.items()}
        missing = sorted(set(targets) - set(stored.keys()))
        if missing:
            raise ValueError(
                f"{file} lacks {len(missing)} tensors, first {missing[:3]}; it was made by other code, start afresh"
            )
        for name, target in targets.items():
            target.copy_(stored.get_tensor(name))
    return int(about["step"])


class Trainer:
    def __init__(self, plan: Plan):
        self.plan, self.shape = plan, shapes.SHAPES[plan.shape]
        self.model = network.build(plan.shape)
        network.for_training(self.model)
        self.optimizer = Optimizer(self.model, plan.muon)
        self.done = load(plan.state, self.model, self.optimizer, plan.shape)
        self.batches = Batches(self.shape, plan.tokenizer, plan.state.parent / "source")
        self.ladder = shapes.ladder(plan.shape)
        forward = lambda *batch: network.losses(self.model, *batch)  # noqa: E731
        self.forward = torch.compile(forward, dynamic=False) if plan.compile else forward
        self.stop = False

    def step(self, number: int) -> dict:
        plan, started = self.plan, time.perf_counter()
        batch = self.batches.batch(number - 1)
        regime = regime_of(number, plan.shape)
        network.switch(self.model, self.ladder[regime])
        tokens, weights = torch.from_numpy(batch.tokens), torch.from_numpy(batch.weights)
        with torch.autocast("cpu", torch.bfloat16):
            missed = self.forward(tokens, masks(torch.from_numpy(batch.documents), self.shape.window), weights)
        loss = missed.sum() / weights.sum()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"{plan.shape}: loss is {loss.item()} at step {number}; the last good state is in {plan.state}"
            )
        loss.backward()
        norm = self.optimizer.step(number, rate(number, plan))
        seconds = time.perf_counter() - started
        return {
            "step": number,
            "regime": regime,
            "loss": loss.item(),
            "norm": norm,
            "seconds": seconds,
            **parts(missed, weights, batch),
        }

    def run(self) -> None:
        """Train up to the plan's last step; SIGINT and SIGTERM save and stop."""
        for sort in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sort, lambda *_: setattr(self, "stop", True))
        last_save, window = time.monotonic(), []
        for number in range(self.done + 1, self.plan.steps + 1):
            row = self.step(number)
            window = [*window[-49:], row["seconds"]]
            self.done = number
            if number % 10 == 0:
                self.report(row, sorted(window)[len(window) // 2])
            ended = self.stop or number == self.plan.steps
            if ended or time.monotonic() - last_save > self.plan.save_seconds:
                save(self.plan.state, number, self.model, self.optimizer, self.plan)
                last_save = time.monotonic()
            if self.stop:
                print(f"stopped and saved after step {number}", flush=True)
                return

    def report(self, row: dict, median: float) -> None:
        left = (self.plan.steps - row["step"]) * median
        speed = shapes.ROWS * shapes.CONTEXT / median
        with (self.plan.state / "log.jsonl").open("a") as log:
            log.write(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}) + "\n")
        print(
            f"{self.plan.shape} {row['step']}/{self.plan.steps} {row['regime']} loss {row['loss']:.3f}"
            f" source {row['source']:.3f} answers {row['answers']:.3f} norm {row['norm']:.2f}"
            f" {speed:.0f} tokens/s, {left / 60:.0f} min left",
            flush=True,
        )


def parts(missed: torch.Tensor, weights: torch.Tensor, batch) -> dict[str, float]:
    """Mean loss in nats of source tokens and of answer tokens apart."""
    missed, weights = missed.detach(), weights[:, :-1]
    item = torch.from_numpy(batch.is_item)[:, None]
    answers = item & (weights >= 1)
    found = {}
    for name, mask in (("source", (~item) & (weights > 0)), ("answers", answers)):
        total = (weights * mask).sum()
        found[name] = ((missed * mask).sum() / total).item() if total else math.nan
    return found


def load_step(path: Path) -> int:
    with safe_open(path / STATE, "pt") as stored:
        return int(stored.metadata()["step"])
