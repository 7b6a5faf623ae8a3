"""How large states become, block by block: what half precision must hold before a head sees any of it."""

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
import numpy as np

from agp.models.decoder import Decoder
from agp.sites import At, Site


def largest(model: Decoder, texts: Iterable[Any]) -> list[float]:
    """Of each block the size of the largest number in its state, all streams, at every position of these tokens."""
    found: dict[Site, mx.array] = {}

    def act(site, fn, x):
        y = fn(x)
        size = mx.abs(y).max().astype(mx.float32)
        found[site] = mx.maximum(found[site], size) if site in found else size
        return y

    sites = [Site(block, "block") for block in range(model.config.num_layers)]
    for tokens in texts:
        model.blocks(model.embed(mx.array(tokens)[None]), visit=At(sites, act))
        mx.eval(list(found.values()))
    return [float(np.array(found[site])) for site in sites]
