"""What hosts make for each other: files that one has and others have not, and jobs that are done once for all."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from safetensors.numpy import load, save
from tqdm import tqdm

from agp.artifacts import write_bytes
from agp.hosts import added, spread

Arrays = dict[str, np.ndarray]
Job = TypeVar("Job")


def ranked(group: Any) -> tuple[int, int]:
    """Which host this is, and of how many."""
    return (group.rank(), group.size()) if group is not None else (0, 1)


def exchange(group: Any, paths: Sequence[Path]) -> None:
    """Each file is sent by the first host that has it to all that have not."""
    rank, size = ranked(group)
    if size == 1:
        return
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


def handed(group: Any, owner: int, paths: Sequence[Path]) -> None:
    """All hosts have these files as `owner` has them."""
    if ranked(group)[0] != owner:
        for path in paths:
            path.unlink(missing_ok=True)
    exchange(group, paths)


def by_hosts(group: Any, jobs: Sequence[Job], work: Callable[[Job], Arrays], what: str = "") -> Iterator[Arrays]:
    """What `work` makes of each job, in their order: by one host each, as many at once as there are hosts. All hosts
    must go through it to its end."""
    rank, size = ranked(group)
    for at in tqdm(
        range(0, len(jobs), size), desc=what, disable=bool(rank) or not what, leave=False, file=sys.stderr, unit="part"
    ):
        here = jobs[at : at + size]
        yield from every(group, work(here[rank]) if rank < len(here) else {})[: len(here)]


def every(group: Any, mine: Arrays) -> list[Arrays]:
    """What each host has."""
    rank, size = ranked(group)
    if size == 1:
        return [dict(sorted(mine.items()))]
    data = save({name: np.ascontiguousarray(array) for name, array in mine.items()})
    sizes = np.zeros(size, np.int32)
    sizes[rank] = len(data)
    sizes = np.array(added(group, [mx.array(sizes)])[0])
    words = np.zeros((size, -(-int(sizes.max()) // 4)), np.int32)
    words[rank].view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    words = np.array(added(group, [mx.array(words)])[0])
    found = [load(row.tobytes()[:length]) for row, length in zip(words, sizes.tolist(), strict=True)]
    return [dict(sorted(of.items())) for of in found]  # what was read stands in any order, and in another on each host
