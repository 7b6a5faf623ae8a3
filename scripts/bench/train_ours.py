"""Our side of `agp bench train`: an epoch whenever a line comes in, a line of JSON after each."""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import agp  # isort: skip  (before MLX: it chooses the BLAS)
import mlx.core as mx
import numpy as np

from agp.adapters import attach, trainable
from agp.features import Prefix, lowest
from agp.language import look_up, loss
from agp.packing import assemble
from agp.supervise import Example
from agp.targets import design
from agp.train import FitConfig, fit


def main(folder: str, last: int | None, rows: int, epochs: int, length: int) -> None:
    sys.stdin.readline()
    model = agp.load(folder, table="disk").model
    attach(model, design(model, "all", rank=8, last=last))
    examples = [example(ids) for ids in json.loads((Path(folder) / "rows.json").read_text())]
    batches = [[[e] for e in examples[at : at + rows]] for at in range(0, len(examples), rows)]
    with tempfile.TemporaryDirectory(dir=folder) as out:
        start = lowest(model)
        prefix = Prefix(model, start, [row for batch in batches for row in batch], Path(out), {}) if start else None

        def given(step: int, micro: int):
            batch = batches[(step - 1) % len(batches)]
            made = assemble(batch)
            return (look_up(model, made) | (prefix.given(batch, made.tokens.shape[1]) if prefix else {}),)

        config = FitConfig(steps=epochs * len(batches), rate=1e-5, save_every=10**6, log_every=10**6)
        fit(model, partial(loss, start=start), given, config, out, watch=Epochs(len(batches), trainable(model)))


def example(ids: list[int]) -> Example:
    return Example("", np.array(ids, np.int32), np.arange(len(ids)) >= len(ids) // 2)


class Epochs:
    def __init__(self, batches: int, trained: int):
        self.batches, self.trained = batches, trained
        self.seconds = self.missed = self.count = 0.0

    def __call__(self, row: dict) -> None:
        self.seconds += row["seconds"]
        self.missed += row["loss"] * row["count"]
        self.count += row["count"]
        if row["step"] % self.batches == 0:
            told = {"seconds": self.seconds, "loss": self.missed / self.count, "trained": self.trained}
            print(json.dumps(told | {"peak_bytes": mx.get_peak_memory()}), flush=True)
            self.seconds = self.missed = self.count = 0.0
            sys.stdin.readline()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
