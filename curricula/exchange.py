"""Files that hosts made for each other: each is sent by the first host that has it to all that have not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from agp.artifacts import write_bytes
from agp.hosts import added, spread


def exchange(group: Any, paths: Sequence[Path]) -> None:
    if group is None or group.size() == 1:
        return
    rank, size = group.rank(), group.size()
    sizes = np.zeros((size, len(paths)), np.int32)  # one more than the bytes, so that none is not an empty file
    sizes[rank] = [path.stat().st_size + 1 if path.exists() else 0 for path in paths]
    sizes = np.array(added(group, [mx.array(sizes)])[0])
    for number, path in enumerate(paths):
        if sizes[:, number].all() or not sizes[:, number].any():
            continue
        owner = int(np.argmax(sizes[:, number] > 0))
        length = int(sizes[owner, number]) - 1
        words = np.zeros(-(-length // 4), np.int32)
        if rank == owner:
            words.view(np.uint8)[:length] = np.frombuffer(path.read_bytes(), np.uint8)
        words = np.array(spread(group, owner, [mx.array(words)])[0])
        if not sizes[rank, number]:
            write_bytes(path, words.tobytes()[:length])
