"""With a cache, without one, at once or in any pieces: one network.

Seen to fail when broken: keys rotated from position 0 in every chunk (`Place.start_of` without `end`), a window one
token short in `LayerCache.extend`, a borrower that reads the producer's keys before the chunk (`held` before `extend`).
"""

import mlx.core as mx
import pytest

from agp.cache import STEP, Cache, LayerCache
from export.ruler import measure
from tests.toys import CASES, text, toy


def in_pieces(model, tokens, cuts):
    cache, out = model.make_cache(), []
    for a, b in zip([0, *cuts], [*cuts, tokens.shape[1]], strict=True):
        out.append(model(tokens[:, a:b], cache=cache).logits)
    return mx.concatenate(out, axis=1)


@pytest.mark.parametrize("family, name", CASES)
def test_cached_is_uncached_is_token_by_token_is_chunked(family, name):
    model, tokens = toy(family, name), text()
    whole = model(tokens).logits
    for cuts in (range(1, 17), [3, 4, 12], [7]):
        assert measure(f"cut at {list(cuts)}", in_pieces(model, tokens, list(cuts)), whole).passed


@pytest.mark.parametrize("family", ["gemma4", "gemma3n"])
def test_a_text_longer_than_the_cache_buffer_is_the_same(family):
    """Past `STEP` tokens a sliding buffer has moved its window to the front, and a long chunk has replaced it."""
    model = toy(family, max_position_embeddings=4 * STEP)
    tokens = text(rows=1, length=2 * STEP + 9)
    whole = model(tokens).logits
    for cuts in ([5, STEP, STEP + 1, 2 * STEP], [STEP + 7], [1, STEP + 5, STEP + 6]):
        assert measure(f"cut at {cuts}", in_pieces(model, tokens, cuts), whole).passed


@pytest.mark.parametrize("family, name", CASES)
def test_the_last_positions_alone_are_the_same(family, name):
    model, tokens = toy(family, name), text()
    whole = model(tokens).logits
    for last in (1, 3, 40):
        expected = whole[:, 17 - min(last, 17) :]
        assert measure("uncached", model(tokens, last=last).logits, expected).passed
        assert measure("cached", model(tokens, cache=model.make_cache(), last=last).logits, expected).passed
    with pytest.raises(ValueError, match="last is 0"):
        model(tokens, last=0)


@pytest.mark.parametrize("family", ["gemma4", "gemma3n"])
def test_a_prompt_prefilled_without_its_upper_blocks_goes_on_the_same(family):
    model, tokens = toy(family), text()
    cache = model.make_cache()
    model.blocks(model.embed(tokens[:, :9]), stop=model.config.num_producers, cache=cache)
    assert measure("after", model(tokens[:, 9:], cache=cache).logits, model(tokens).logits[:, 9:]).passed


@pytest.mark.parametrize("family", ["gemma4", "gemma3n"])
def test_forgetting_tokens_is_never_having_seen_them(family):
    model, tokens = toy(family), text()
    cache = model.make_cache()
    model(tokens[:, :10], cache=cache)
    model(text(seed=5)[:, :4], cache=cache)
    cache.trim(4)
    assert cache.position == 10
    assert measure("after", model(tokens[:, 10:], cache=cache).logits, model(tokens).logits[:, 10:]).passed


def test_forgetting_is_for_all_layers_or_for_none():
    cache = Cache([None, 8], object())
    for layer in cache.layers:
        layer.extend(*[mx.zeros((1, 1, 300, 4))] * 2)
    with pytest.raises(ValueError, match=r"windows of blocks \[1\] have moved on"):
        cache.trim(250)
    assert [layer.offset for layer in cache.layers] == [300, 300]
    for wrong in (-3, 1.5, 301):
        with pytest.raises(ValueError, match="cannot forget"):
            cache.trim(wrong)
    cache.pad = mx.array([3])
    cache.trim(300)  # nothing is left, so nothing must be whole
    assert cache.position == 0 and cache.pad is None and cache.rows is None


def test_a_refused_call_leaves_the_cache_as_it_was():
    model, tokens = toy(), text()
    cache = model.make_cache()
    model(tokens[:, :6], cache=cache)
    for wrong in (tokens[:1, 6:], tokens[:, 6:] + 500, tokens[:, 6:] + 0.5):
        with pytest.raises(ValueError):
            model(wrong, cache=cache)
    with pytest.raises(ValueError, match="not later"):
        model(tokens[:, 6:], cache=cache, pad=[0, 0])
    assert measure("after", model(tokens[:, 6:], cache=cache).logits, model(tokens).logits[:, 6:]).passed
    for pad in ([1], [-3, 0], [1.5, 0]):
        fresh = model.make_cache()
        with pytest.raises(ValueError, match="pad is"):
            model(tokens, cache=fresh, pad=pad)
        assert fresh.pad is None and fresh.position == 0


@pytest.mark.parametrize("window", [None, 4])
def test_a_cache_cannot_forget_what_it_no_longer_holds(window):
    cache = LayerCache(window)
    cache.extend(*[mx.zeros((1, 1, STEP + 8, 4))] * 2)
    if window is None:
        cache.trim(STEP)
        assert cache.offset == 8
    with pytest.raises(ValueError, match="cannot forget"):
        cache.trim(STEP)


def test_a_sliding_cache_stays_small():
    cache = LayerCache(window=64)
    for _ in range(40):
        cache.extend(*[mx.zeros((1, 2, 32, 4))] * 2)
    cache.extend(*[mx.zeros((1, 2, 2000, 4))] * 2)
    cache.extend(*[mx.zeros((1, 2, 1, 4))] * 2)
    assert cache.nbytes <= 2 * 2 * 4 * 4 * (64 + STEP)
    assert cache.offset == 40 * 32 + 2001
