"""Stopping anywhere and going on from there is running straight through.

Seen to fail when broken: borrowed keys left off the stream, a restored run that starts at position 0, vectors that are
scaled a second time.
"""

import mlx.core as mx
import pytest

from agp.models.decoder import Stream
from export.ruler import measure
from tests.toys import CASES, text, toy

BOTH = pytest.mark.parametrize("family", ["gemma4", "gemma3n"])


@pytest.mark.parametrize("family, name", CASES)
def test_stop_then_start_is_straight_through(family, name):
    model, tokens = toy(family, name), text()
    whole = model(tokens).logits
    producers, blocks = model.config.num_producers, model.config.num_layers
    for stop in {0, 1, producers - 1, producers, blocks - 1, blocks}:
        stream = model.blocks(model.embed(tokens), stop=stop)
        assert mx.array_equal(model.unembed(model.blocks(stream, start=stop)), whole)


@pytest.mark.parametrize("family, name", CASES)
def test_a_token_goes_on_from_a_restored_state(family, name):
    """Another host needs the state, the token's id and the keys and values of the source blocks; nothing else."""
    model, tokens = toy(family, name), text(rows=1)
    whole, cache = model(tokens).logits, model.make_cache()
    model(tokens[:, :-1], cache=cache)
    for stop in range(model.config.num_producers, model.config.num_layers + 1):
        there = model.blocks(model.embed(tokens[:, -1:], end=17), stop=stop, cache=cache)
        restored = Stream(there.hidden, model.embed(tokens[:, -1:]).inputs, 17, None, there.shared)
        assert measure(f"from {stop}", model.unembed(model.blocks(restored, start=stop)), whole[:, -1:]).passed
        cache.trim(1)


@BOTH
def test_leaving_after_the_last_producer_leaves_no_hole(family):
    model, tokens = toy(family), text(rows=1)
    early, full = model.make_cache(), model.make_cache()
    for i in range(16):
        token = tokens[:, i : i + 1]
        model.blocks(model.embed(token, end=i + 1), stop=model.config.num_producers, cache=early)
        model(token, cache=full)
    for a, b in zip(early.arrays, full.arrays, strict=True):
        assert mx.array_equal(a, b)


@BOTH
def test_vectors_that_are_the_tokens_own_change_nothing(family):
    model, tokens = toy(family), text()
    vectors = model.embed_vectors(tokens)
    assert mx.array_equal(model(tokens, vectors=vectors).logits, model(tokens).logits)
    moved = model(tokens, vectors=vectors + 1).logits
    assert not mx.allclose(moved, model(tokens).logits)
    assert not mx.allclose(model(vectors=vectors).logits, model(tokens).logits)  # no ids, no table rows


@BOTH
def test_a_stream_that_does_not_fit_the_cache_is_refused(family):
    model, tokens = toy(family), text()
    cache = model.make_cache()
    model(tokens[:, :5], cache=cache)
    with pytest.raises(ValueError, match="the stream starts at token 0, but the cache holds"):
        model.blocks(model.embed(tokens[:, 5:]), cache=cache)
    with pytest.raises(ValueError, match="not a range"):
        model.blocks(model.embed(tokens), start=3, stop=9)
    with pytest.raises(ValueError, match="not in the stream"):
        model.blocks(model.embed(tokens), start=4)


@BOTH
def test_compiled_is_uncompiled(family):
    model, tokens = toy(family), text()
    run = mx.compile(lambda t: model.unembed(model.blocks(model.embed(t))))
    assert measure("logits", run(tokens), model(tokens).logits).passed
