"""Whether heads say in MLX what their description says, and in PyTorch: of real positions as they are, not rounded."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from curricula.features import Features
from export import judges, sample, verify
from export.ops import Entry
from export.program import MANY
from export.verify import Verdict
from heads.bundle import Bundle
from scripts.export.feeds import feeds
from scripts.export.said import said

TORCH = find_spec("torch") is not None
PAIRS = ("mlx", "twins") if TORCH else ("mlx",)


def compared(
    bundle: Bundle,
    features: Features,
    entries: Mapping[str, Entry],
    room: int,
    documents: list[int],
    rules: Mapping[str, Any],
) -> Iterator[Verdict]:
    given = list(feeds(bundle, features, np.array(documents), room, MANY))
    counts = [len(of.positions) for of in given]
    part = sample.described(entries["many"], [of.inputs for of in given], counts, half=False)
    for pair in PAIRS:
        heads = bundle if pair == "mlx" else twinned(bundle)
        told = sample.joined([said(heads, features, d) for d in documents])
        yield verify.compare(pair, judges.by_description(entries), {"many": part._replace(said=told)}, rules)


def twinned(bundle: Bundle) -> Bundle:
    from export import twins

    return twins.twinned(bundle)
