"""mlx-lm's side of `agp bench train`: its own loader, LoRA layers and trainer, an epoch whenever a line comes in."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import agp  # noqa: F401  isort: skip  (before MLX: it chooses the BLAS)
import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.datasets import CacheDataset
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model


class Rows:
    """As its own data sets are: an item, and what becomes of it: tokens, and where the learned ones begin."""

    def __init__(self, rows: list[list[int]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[int]:
        return self.rows[index]

    def process(self, row: list[int]) -> tuple[list[int], int]:
        return row, len(row) // 2


class Epochs(TrainingCallback):
    def __init__(self, batches: int, trained: int):
        self.batches, self.trained = batches, trained

    def on_train_loss_report(self, train_info: dict) -> None:
        seconds = self.batches / train_info["iterations_per_second"]
        told = {"seconds": seconds, "loss": train_info["train_loss"], "trained": self.trained}
        print("\n" + json.dumps(told | {"peak_bytes": mx.get_peak_memory()}), flush=True)
        sys.stdin.readline()


def main(folder: str, last: int | None, rows: int, epochs: int, length: int) -> None:
    sys.stdin.readline()
    model, config = load_model(Path(folder))
    model.freeze()
    blocks = config["num_hidden_layers"] if last is None else last
    linear_to_lora_layers(model, blocks, {"rank": 8, "scale": 2.0, "dropout": 0.0})
    arrays: Any = tree_flatten(model.trainable_parameters())
    trained = sum(a.size for _, a in arrays)
    given = json.loads((Path(folder) / "rows.json").read_text())
    batches = len(given) // rows
    np.random.seed(0)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        file = str(Path(out) / "adapters.safetensors")
        how: Any = {"batch_size": rows, "iters": epochs * batches, "steps_per_report": batches, "steps_per_save": 10**6}
        args = TrainingArgs(**how, max_seq_length=length + 1, adapter_file=file)
        callback = Epochs(batches, trained)
        train(model, optim.AdamW(1e-5), CacheDataset(Rows(given)), None, args, training_callback=callback)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
