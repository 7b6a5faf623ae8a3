"""A saved Core AI asset, computed by Apple's own runtime, on Linux too: a judge that shares nothing with ours."""

import asyncio
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import coreai.authoring as ca
import numpy as np
from coreai.runtime import NDArray

from export.folder import AUTHORED
from export.verify import Run

PROGRAM, HASH = AUTHORED


def whole(asset: Path) -> bool:
    """Whether its program has the bytes that were written: it is not opened else."""
    return sha256((asset / PROGRAM).read_bytes()).digest() == (asset / HASH).read_bytes()


def content(asset: Path) -> str:
    """A digest of all that it computes: weights have names by chance there, and go by their own digests here."""
    text, _, kept = str(ca.AIModelAsset.load(asset).program).partition("{-#")
    known = {of[1]: sha256(of[2].encode()).hexdigest() for of in re.finditer(r'(resource_\d+): "(\w+)"', kept)}
    return sha256(re.sub(r"resource_\d+", lambda of: known[of[0]], text).encode()).hexdigest()


@contextmanager
def opened(asset: Path) -> Iterator[Run]:
    """What Apple's runtime says of an entry and its feed, for as long as it is held."""
    with asyncio.Runner() as loop:
        held: Any = ca.AIModelAsset.load(asset).executable()
        model = loop.run(held.__aenter__())
        function = cache(partial(loaded, model))
        try:
            yield lambda entry, feed: loop.run(answered(function(entry), feed))
        finally:
            loop.run(held.__aexit__(None, None, None))


def loaded(model: Any, entry: str) -> Any:
    with unheard():
        return model.load_function(entry)


async def answered(function: Any, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = await function({name: NDArray(np.ascontiguousarray(x, np.float32)) for name, x in feed.items()})
    return {name: x.numpy().copy() for name, x in found.items()}


@contextmanager
def unheard() -> Iterator[None]:
    """The library tells the terminal of every function that it loads."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
