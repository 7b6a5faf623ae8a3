"""Training on text: what a batch becomes for the model, and its loss.

What is looked up by id is looked up outside the compiled step: the per-layer table may lie on disk.
"""

import mlx.core as mx

from agp.losses import Sums, measured, next_token
from agp.models.decoder import Decoder
from agp.packing import Batch
from agp.recompute import recompute
from agp.sites import plain

Arrays = tuple[mx.array, ...]


def arrays(model: Decoder, batch: Batch) -> Arrays:
    """Vectors, rows of the per-layer table (none: an empty array), documents, places, targets, weights."""
    tokens, documents, where, targets, weights = map(mx.array, batch)
    rows = model.embed_rows(tokens)
    return model.embed_vectors(tokens), mx.array(0) if rows is None else rows, documents, where, targets, weights


def states(model: Decoder, given: Arrays, small: bool) -> mx.array:
    """The last block's states at the supervised places; `small` keeps nothing of a block's inside."""
    vectors, rows, documents, where = given[:4]
    stream = model.begin(vectors, rows if rows.ndim else None, documents=documents)
    return model.blocks(stream, visit=recompute() if small else plain).hidden.flatten(0, 1)[where]


def loss(model: Decoder, *given: mx.array, small: bool = True) -> Sums:
    targets, weights = given[4:]
    return next_token(model, states(model, given, small), targets, weights)


def held_out(model: Decoder, *given: mx.array) -> Sums:
    targets, weights = given[4:]
    return measured(model, states(model, given, False), targets, weights)
