"""The loss of the next token, at supervised positions only and a few at a time: never all logits at once.

A chunk's gradient is found beside its loss, while its logits are there, and kept in their stead: one product with the
head forward, one back, and none again.
"""

from functools import partial
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from agp.layers import soft_cap

CHUNK = 32  # positions whose logits are one array: 32 MiB for a real vocabulary, of which MLX has a dozen under way
NO_CAP = 2.0**100  # of logits where a model has none: nothing is rounded by it
TINY = 1e-37  # others that are less beside the largest weigh nothing in float32
STAGE = 256  # terms added one after another
HEAD = ("altup_unembed_projections", "norm", "lm_head", "embed_tokens")

Sums = tuple[mx.array, mx.array]  # the loss summed, and over how much weight


def next_token(model: Any, hidden: mx.array, targets: mx.array, weights: mx.array, chunk: int = CHUNK) -> Sums:
    """`hidden` are the last block's states at the supervised positions, S D (Gemma 3n: S 4 D). For training."""
    own: Any = tree_flatten({name: tree for name, tree in model.trainable_parameters().items() if name in HEAD})
    names = [name for name, _ in own]

    @mx.custom_function
    def summed(hidden, *weights_of_head):
        loss, slopes, of_head = mx.array(0.0), [], [mx.zeros_like(w) for w in weights_of_head]
        for part in parts(hidden, chunk):
            h = mx.depends([hidden[part]], [loss, *slopes[-1:]])[0]  # or all chunks would be under way at once
            missed = partial(missed_with, model, names, targets[part], weights[part])
            (new,), (slope, *more) = mx.vjp(missed, [h, *weights_of_head], [mx.array(1.0)])
            loss, slopes, of_head = loss + new, [*slopes, slope], [a + b for a, b in zip(of_head, more, strict=True)]
        return loss, mx.concatenate(slopes), *of_head

    @summed.vjp
    def slopes(_primals, cotangents, outputs):
        return tuple(cotangents[0].astype(slope.dtype) * slope for slope in outputs[1:])

    found: Any = summed(hidden, *(w for _, w in own))
    model.update(tree_unflatten(own))
    return found[0], weights.sum()


def missed_with(model: Any, names: list[str], targets: mx.array, weights: mx.array, hidden: mx.array, *of_head):
    model.update(tree_unflatten(list(zip(names, of_head, strict=True))))
    return missed_by(model, hidden, targets, weights)


def measured(model: Any, hidden: mx.array, targets: mx.array, weights: mx.array, chunk: int = CHUNK) -> Sums:
    """The same without a gradient."""
    loss = mx.array(0.0)
    for part in parts(hidden, chunk):
        loss = loss + missed_by(model, mx.depends([hidden[part]], [loss])[0], targets[part], weights[part])
    return loss, weights.sum()


def parts(hidden: mx.array, chunk: int) -> list[slice]:
    return [slice(at, at + chunk) for at in range(0, hidden.shape[0], chunk)]


def missed_by(model: Any, hidden: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
    cap = model.config.final_logit_softcapping
    found: Any = surprise(model.uncapped(model.normed(hidden[None]))[0], targets[:, None], mx.array(cap or NO_CAP))
    return (weights * found[0]).sum()


@mx.custom_function
def surprise(uncapped: mx.array, targets: mx.array, cap: mx.array) -> Any:
    """Minus log of the true one's share, as log(1 + others / true): where that is nearly sure it keeps its digits."""
    logits = soft_cap(uncapped.astype(mx.float32), cap)
    most = logits.max(-1, keepdims=True)
    beside = mx.where(targets == mx.arange(logits.shape[-1]), 0.0, mx.exp(logits - most))
    others = mx.maximum(total(beside), TINY)
    odds = mx.log(others) + most - mx.take_along_axis(logits, targets, axis=-1)
    untold = mx.sigmoid(odds)
    return mx.logaddexp(0.0, odds)[:, 0], logits, beside, untold, untold / others


@surprise.vjp
def _(primals, cotangents, outputs):
    """By `softmax - 1` the slope of the true one would be lost to rounding; by the sum of all others it is not."""
    (uncapped, targets, cap), (_, logits, beside, untold, part), due = primals, outputs, cotangents[0][:, None]
    slope = mx.where(targets == mx.arange(beside.shape[-1]), -due * untold, due * part * beside)
    slope = slope * (1 - mx.square(logits / cap))
    return slope.astype(uncapped.dtype), mx.zeros_like(targets), mx.zeros_like(cap)


def total(x: mx.array) -> mx.array:
    """Of the last axis, in two stages: a CPU adds one after another, and small terms are lost beside a large sum."""
    short = -x.shape[-1] % STAGE
    x = mx.pad(x, [(0, 0), (0, short)]) if short else x
    return x.reshape(x.shape[0], -1, STAGE).sum(-1).sum(-1, keepdims=True)
