"""Training on text: what a batch becomes for the model, and its loss.

What is looked up by id is looked up outside the compiled step: the per-layer table may lie on disk.
"""

from typing import Any

import mlx.core as mx

from agp.cache import KV
from agp.losses import Sums, measured, next_token
from agp.models.decoder import Decoder, Stream
from agp.packing import Batch
from agp.recompute import recompute
from agp.sites import plain

Given = dict[str, Any]  # arrays by name: vectors, rows of the per-layer table, documents, where, targets, weights


def look_up(model: Decoder, batch: Batch) -> Given:
    given = {name: mx.array(a) for name, a in batch._asdict().items()}
    tokens = given.pop("tokens")
    return given | {"vectors": model.embed_vectors(tokens), "rows": model.embed_rows(tokens)}


def begun(model: Decoder, given: Given) -> Stream:
    """Where the first block starts; or, with a `hidden` state and `shared` keys and values, a later one."""
    stream = model.begin(given["vectors"], given["rows"], documents=given["documents"])
    if "hidden" not in given:
        return stream
    return stream._replace(hidden=given["hidden"], shared={kind: KV(*kv) for kind, kv in given["shared"].items()})


def states(model: Decoder, given: Given, start: int, small: bool) -> mx.array:
    """The last block's states at the supervised places; `small` keeps nothing of a block's inside."""
    stream = model.blocks(begun(model, given), start=start, visit=recompute() if small else plain)
    return stream.hidden.flatten(0, 1)[given["where"]]


def loss(model: Decoder, given: Given, start: int = 0, small: bool = True) -> Sums:
    return next_token(model, states(model, given, start, small), given["targets"], given["weights"])


def held_out(model: Decoder, given: Given, start: int = 0) -> Sums:
    return measured(model, states(model, given, start, False), given["targets"], given["weights"])
