"""Generation: the same tokens as without a cache, no work that is not needed, text that a seed and stop strings decide.

Seen to fail when broken: a stop string's beginning let through, the cache left one token ahead, top-p before the
temperature, blocks above the producers run for the whole prompt.
"""

import mlx.core as mx
import numpy as np
import pytest
import torch

from agp.generate import generate, greedy, make_sampler, nucleus, prefill, until
from tests import toys
from tests.toys import text

PROMPT: list[int] = np.array(text(1, 23))[0].tolist()


def toy(family: str = "gemma4", **changes):
    """With a head of its own: a quiet toy whose head is its embedding says the last token over and over."""
    return toys.toy(family, tie_word_embeddings=False, **changes)


def tokens(model, prompt=PROMPT, **how):
    return [step.token for step in generate(model, prompt, **{"max_tokens": 12, **how})]


def without_a_cache(model, count: int) -> list[int]:
    out = list(PROMPT)
    for _ in range(count):
        out.append(int(np.array(model([out], last=1).logits[0, -1]).argmax()))
    return out[len(PROMPT) :]


@pytest.mark.parametrize("chunk", [1, 5, 22, 23, 512])
@pytest.mark.parametrize("family", ["gemma4", "gemma3n"])
def test_greedy_text_is_what_the_model_says_without_a_cache(family, chunk):
    model = toy(family)
    assert tokens(model, chunk=chunk) == without_a_cache(model, 12)


def test_a_step_carries_the_logits_it_was_chosen_from():
    model = toy()
    steps = list(generate(model, PROMPT, max_tokens=3))
    ids = PROMPT + [step.token for step in steps]
    whole = model([ids[:-1]], last=3).logits[0]
    for step, row in zip(steps, whole, strict=True):
        assert mx.allclose(step.logits, row, atol=1e-4)
        assert step.logprob == pytest.approx((row - mx.logsumexp(row))[step.token].item(), abs=1e-4)


@pytest.mark.parametrize("family", ["gemma4", "gemma3n"])
def test_prefill_runs_only_the_blocks_and_positions_that_are_needed(family, monkeypatch):
    model, seen = toy(family), []
    monkeypatch.setattr(type(model.layers[0]), "__call__", watched(type(model.layers[0]).__call__, model, seen))
    mx.eval(prefill(model, mx.array([PROMPT]), model.make_cache(), chunk=10))
    producers, count = model.config.num_producers, model.config.num_layers
    whole = [(i, 10) for i in range(producers)]
    assert seen == whole + whole + [(i, 3) for i in range(producers)] + [(i, 1) for i in range(producers, count)]


def watched(call, model, seen):
    def watch(block, x, **rest):
        seen.append((next(i for i, b in enumerate(model.layers) if b is block), x.shape[1]))
        return call(block, x, **rest)

    return watch


@pytest.mark.parametrize("ending", ["length", "stop", "closed"])
def test_the_cache_can_be_gone_on_with(ending):
    model = toy()
    expected, cache = tokens(model, max_tokens=12), model.make_cache()
    if ending == "closed":
        steps = generate(model, PROMPT, max_tokens=12, cache=cache)
        first = [next(steps).token for _ in range(4)]
        steps.close()
    else:
        how = {"max_tokens": 4} if ending == "length" else {"max_tokens": 9, "stop": [expected[3]]}
        first = tokens(model, cache=cache, **how)
    assert first == expected[: len(first)]
    assert cache.position == len(PROMPT) + len(first) - 1
    assert tokens(model, first[-1:], cache=cache, max_tokens=12 - len(first)) == expected[len(first) :]


def test_a_stop_token_is_the_last_one():
    model = toy()
    expected = tokens(model)
    assert tokens(model, stop=[expected[5]]) == expected[: expected.index(expected[5]) + 1]


def test_it_ends_where_the_context_is_full():
    model = toy(max_position_embeddings=26)
    assert len(tokens(model, max_tokens=50)) == 26 - 23 + 1
    with pytest.raises(ValueError, match="27 tokens do not fit the context of 26"):
        generate(model, PROMPT + PROMPT[:4], max_tokens=1)


def test_progress_is_told_chunk_by_chunk():
    told = []
    tokens(toy(), chunk=10, progress=lambda *done: told.append(done))
    assert told == [(10, 23), (20, 23), (23, 23)]


@pytest.mark.parametrize(
    "prompt, how, what",
    [
        ([], {}, "the prompt is empty"),
        ([3, 96], {}, "go from 3 to 96"),
        ([3], {"max_tokens": 0}, "max_tokens is 0; 1 or more"),
        ([3], {"chunk": 0}, "chunk is 0; 1 or more"),
        ([3], {"cache": "another"}, "another model"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(prompt, how, what):
    if how.get("cache"):
        how = {"cache": toy().make_cache()}
    with pytest.raises(ValueError, match=what):
        list(generate(toy(), prompt, **{"max_tokens": 4, **how}))


def test_a_seed_decides_the_text_and_nothing_else_does():
    model = toy()
    draw = lambda seed: tokens(model, sampler=make_sampler(1.0, 0.9, seed))
    once = draw(7)
    mx.random.seed(123)
    assert draw(7) == once
    assert len({tuple(draw(seed)) for seed in range(4)}) > 1


def test_temperature_and_top_p_keep_what_transformers_keeps():
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(0, 3, (8, 50)).astype(np.float32)
    none = torch.LongTensor(8, 1)
    for temperature, top_p in [(0.5, 0.5), (1.0, 0.9), (2.0, 0.99), (1.0, 1e-6)]:
        warm = TemperatureLogitsWarper(temperature)(none, torch.FloatTensor(logits))
        theirs = TopPLogitsWarper(top_p)(none, torch.FloatTensor(warm)).numpy()
        ours = np.array(nucleus(mx.array(logits) / temperature, top_p))
        assert (np.isfinite(ours) == np.isfinite(theirs)).all()


def test_drawn_tokens_are_as_frequent_as_they_are_likely():
    likely = np.array([0.5, 0.3, 0.15, 0.05])
    sampler = make_sampler(2.0, 0.75, seed=1)
    drawn = np.array([sampler(mx.log(mx.array(likely)[None]), [n]).item() for n in range(2000)])
    kept = likely[:3] ** 0.5  # cold, the first two would be enough
    assert np.bincount(drawn, minlength=4) / 2000 == pytest.approx([*kept / kept.sum(), 0], abs=0.04)


@pytest.mark.parametrize("how", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}])
def test_samplers_refuse_what_means_nothing(how):
    with pytest.raises(ValueError, match=next(iter(how))):
        make_sampler(**how)
    assert make_sampler(0, 0.5, 3) is greedy


@pytest.mark.parametrize("seed", range(20))
def test_stop_strings_cut_the_same_text_however_it_is_cut_into_pieces(seed):
    rng = np.random.default_rng(seed)
    whole = "".join(rng.choice(list("abc"), 40))
    stops = ["".join(rng.choice(list("abc"), n)) for n in rng.integers(2, 6, 3)]
    ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    expected = whole[: min(ends)[1]] if ends else whole
    edges = [0, *sorted(rng.integers(0, 41, 12).tolist()), 40]
    pieces = [whole[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    shown = ""
    for piece in until(pieces, stops):
        shown += piece
        assert expected.startswith(shown)
    assert shown == expected


def test_text_is_held_back_no_longer_than_it_may_begin_a_stop_string():
    assert list(until(["ab", "c#", "#d", "#"], ["###"])) == ["ab", "c", "##d", "#"]
    assert list(until(["a", "b"], [])) == ["a", "b", ""]
    with pytest.raises(ValueError, match="a stop string is empty"):
        list(until(["a"], [""]))
