"""A row in a batch is the row alone, whatever pads it.

Seen to fail when broken: padding left visible (`Place._make` without `text`), padding that attends to nothing (without
the diagonal), a root whose gradient at zero is infinite (`same_size` and `largest` with a plain square root).
"""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from agp.layers import Place
from export.ruler import measure
from tests.toys import CASES, text, toy

BOTH = pytest.mark.parametrize("family", ["gemma4", "gemma3n"])


@pytest.mark.parametrize("family, name", CASES)
def test_a_row_in_a_batch_is_the_row_alone(family, name):
    model, tokens = toy(family, name), text(rows=3)
    together = model(tokens).logits
    for i in range(3):
        assert measure(f"row {i}", together[i : i + 1], model(tokens[i : i + 1]).logits).passed


@pytest.mark.parametrize("family, name", CASES)
def test_padding_on_the_left_changes_nothing(family, name):
    model, tokens = toy(family, name), text(rows=1, length=11)
    alone = model(tokens).logits
    for cuts in ([2], [7, 8, 15]):
        cache, out = model.make_cache(), []
        padded = mx.concatenate([mx.zeros((1, 6), tokens.dtype), tokens], axis=1)
        batch = mx.concatenate([padded, text(rows=1, seed=3)])
        for a, b in zip([0, *cuts], [*cuts, 17], strict=True):
            pad = [6, 0] if a == 0 else None
            out.append(model(batch[:, a:b], cache=cache, pad=pad).logits)
        got = mx.concatenate(out, axis=1)
        assert measure(f"cut at {cuts}", got[:1, 6:], alone).passed
        assert measure("its neighbour", got[1:], model(batch[1:]).logits).passed
    assert measure("uncached", model(padded, pad=[6]).logits[:, 6:], alone).passed


@pytest.mark.parametrize("window", [None, 3])
def test_every_query_has_something_to_attend_to(window):
    for queries, keys in ((9, 9), (4, 9), (1, 9)):
        assert Place(9, mx.array([0, 5, 9])).mask(queries, keys, window).any(-1).all()


@BOTH
def test_padding_on_the_right_changes_nothing(family):
    model, tokens = toy(family), text(rows=1, length=11)
    padded = mx.concatenate([tokens, mx.zeros((1, 6), tokens.dtype)], axis=1)
    assert measure("before it", model(padded).logits[:, :11], model(tokens).logits).passed


@BOTH
def test_rows_of_zeros_and_padding_keep_gradients_finite(family):
    """The padding row of a table is all zeros in real checkpoints; mlx-lm's Gemma 3n gives NaN there."""
    model = toy(family)
    for table in (model.embed_tokens, model.embed_tokens_per_layer):
        table.weight = mx.where(mx.arange(table.weight.shape[0])[:, None] == 0, 0, table.weight)
    tokens = mx.concatenate([mx.zeros((2, 5), mx.int32), text()], axis=1)
    tokens[:, 9:12] = 0  # zeros inside the text too

    def loss(model):
        logits = model(tokens, pad=[5, 5]).logits[:, 5:]
        return nn.losses.cross_entropy(logits[:, :-1], tokens[:, 6:]).mean()

    value, grads = nn.value_and_grad(model, loss)(model)
    assert mx.isfinite(value)
    assert [path for path, g in tree_flatten(grads) if not mx.isfinite(g).all()] == []


@BOTH
def test_padding_has_no_say_in_gradients(family):
    model, tokens = toy(family), text(rows=1, length=11)

    def loss(model, tokens, pad):
        logits = model(tokens, pad=[pad]).logits[:, pad:]
        return nn.losses.cross_entropy(logits[:, :-1], tokens[:, pad + 1 :]).sum()

    _, alone = nn.value_and_grad(model, loss)(model, tokens, 0)
    _, padded = nn.value_and_grad(model, loss)(model, mx.concatenate([mx.full((1, 6), 7), tokens], axis=1), 6)
    for (path, a), (_, b) in zip(tree_flatten(alone), tree_flatten(padded), strict=True):
        assert measure(path, b, a).passed


@BOTH
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_is_one_network_too(family, dtype):
    """How near it comes to full precision is judged beside the reference's own half precision, in tests/parity."""
    model, tokens = toy(family), text()
    model.set_dtype(dtype)
    whole, cache = model(tokens).logits, model.make_cache()
    steps = mx.concatenate([model(tokens[:, i : i + 1], cache=cache).logits for i in range(17)], axis=1)
    assert whole.dtype == dtype
    kind = str(dtype).removeprefix("mlx.core.")
    assert measure("steps", steps.astype(mx.float32), whole.astype(mx.float32), kind).passed
