"""Gradient checkpointing as a visit: a block's inside is not kept but computed again when its gradient is due.

Shared keys and values go in and out as arguments, so gradients into their producers are exact; and a borrower's
gradients into them are waited for before the blocks below begin, or those of all borrowers would pile up.
"""

from dataclasses import replace
from typing import Any

import mlx.core as mx

from agp.cache import KV
from agp.exponentials import later
from agp.sites import Fn, Site, Visit, plain


def recompute(then: Visit = plain) -> Visit:
    """Each block is run under `mx.checkpoint`; `then` is what is done at the sites, blocks included."""

    def visit(site: Site, fn: Fn, x: mx.array) -> mx.array:
        if site.part != "block":
            return then(site, fn, x)
        bound: Any = fn
        block, run = bound.func, bound.keywords["run"]
        borrowed = run.borrowed
        if borrowed is not None:
            three: Any = tied(x, *borrowed)
            x, *borrowed = three

        def inner(weights, x, inputs, borrowed):
            own = block.trainable_parameters()
            block.update(weights)
            mine = replace(run, inputs=inputs, borrowed=None if borrowed is None else KV(*borrowed))
            with later():
                y = then(site, lambda x: block(x, mine), x)
            block.update(own)
            return y, mine.made

        y, run.made = mx.checkpoint(inner)(block.trainable_parameters(), x, run.inputs, borrowed)
        return y

    visit.sites = getattr(then, "sites", frozenset())
    return visit


@mx.custom_function
def tied(x: mx.array, keys: mx.array, values: mx.array) -> Any:
    return x, keys, values


@tied.vjp
def _(_primals, cotangents, _outputs):
    x, keys, values = cotangents
    return mx.depends([x], [keys, values])[0], keys, values
