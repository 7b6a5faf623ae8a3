"""One training step for `agp bench memory`: what it held before and at its peak, as a line of JSON."""

import json
import sys
import time
from typing import Any

import agp  # isort: skip  (before MLX: it chooses the BLAS)
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from agp.adapters import attach, trainable
from agp.language import look_up, loss
from agp.models.decoder import Decoder
from agp.models.folder import build
from agp.packing import assemble
from agp.supervise import Example
from agp.targets import design
from scripts.bench.memory import config_of


def main(shape: dict[str, int] | None = None, weights: str = "", length: int = 0) -> None:
    model = agp.load(weights, table="disk").model if shape is None else build(config_of(shape))
    attach(model, design(model, "all", rank=8))
    optimizer = optim.AdamW(1e-4)
    optimizer.init(model.trainable_parameters())
    mx.eval(model.parameters(), optimizer.state)
    rows, length = (1, length) if shape is None else (shape["rows"], shape["length"])
    rng = np.random.default_rng(0)
    words = rng.integers(1, model.config.vocab_size, (rows, length)).astype(np.int32)
    given = look_up(model, assemble([[Example("", ids, np.arange(length) >= length // 2)] for ids in words]))
    mx.eval(given)
    held = mx.get_active_memory()
    seconds = step(model, given, 1 if shape is None else 2)
    found = {"held": held, "peak": mx.get_peak_memory(), "trained": trainable(model), "seconds": seconds}
    print(json.dumps(found))


def step(model: Decoder, given: dict[str, Any], times: int) -> float:
    graph = mx.compile(nn.value_and_grad(model, lambda g: loss(model, g)), inputs=model.state, outputs=model.state)
    seconds = 0.0
    for _ in range(times):
        mx.reset_peak_memory()
        began = time.perf_counter()
        mx.eval(graph(given))
        seconds = time.perf_counter() - began
    return seconds


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
