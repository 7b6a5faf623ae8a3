"""What is proven is what the whole head says, whatever the state; of what is not, the whole head is asked.

Seen to fail when broken: lengths of what was not read halved or a tenth short, or no rounding granted (these stay, as
tests); closed rows left out, or the second opened one; the bound of a later row than the first closed one; one
direction neither read nor bounded; no cap; states of no length let through; rows turned as states are (true, but
nothing is proven).
"""

from dataclasses import replace
from functools import cache

import mlx.core as mx
import numpy as np
import pytest

import agp
from agp import quant
from agp.models.decoder import Decoder
from curricula import families
from heads import saved
from heads.clusters import Config, Head, built
from heads.vocabulary import rows
from tests.toys import toy

CUTS, OPENED = (4, 10, 20), 6
CASES = ("shares some", "no soft cap", "its own head", "8 bits", "4 bits", "bfloat16", "4 bits in bfloat16")
TWINS = (11, 40, 41, 90)  # the same row


def model_of(case: str) -> Decoder:
    model = toy("gemma4", case if case in CASES[:3] else "shares some")
    weight = model.lm_head.weight if case == "its own head" else model.embed_tokens.weight
    for twin in TWINS[1:]:
        weight[twin] = weight[TWINS[0]]
    if "bfloat16" in case:
        model.set_dtype(mx.bfloat16)
    if "bits" in case:
        packing = quant.Packing(int(case[0]), 32)
        packed = quant.blank(model.embed_tokens, packing)
        packed.weight, packed.scales, packed.biases = mx.quantize(model.embed_tokens.weight, 32, packing.bits)
        model.embed_tokens = packed
    return model


def text_like(model: Decoder, count: int, seed: int = 2) -> mx.array:
    """As in states of text, a few directions have most of the variance, and some row is in each."""
    noise = mx.random.normal((count, 32), key=mx.random.key(seed)) * mx.arange(1, 33) ** -0.7
    return model.norm((noise + rows(model, mx.arange(count) % 96)).astype(model.norm.weight.dtype))


def fresh(case: str) -> tuple[Decoder, Config, Head]:
    mx.random.seed(0)
    model = model_of(case)
    return model, *built(model, text_like(model, 200, 1), clusters=3, cuts=CUTS, opened=OPENED)


made = cache(fresh)


def table(model: Decoder) -> np.ndarray:
    return np.array(rows(model, mx.arange(96)), np.float64)


def between(one: np.ndarray, other: np.ndarray, states: np.ndarray) -> np.ndarray:
    """States that say as much of one row as of the other."""
    apart = one - other
    length = np.maximum(np.square(apart).sum(-1, keepdims=True), 1e-9)
    return states - (states * apart).sum(-1, keepdims=True) / length * apart


def along(head: Head, given: np.ndarray) -> list[np.ndarray]:
    """States whose unread part points where a row's does: there the bound is reached."""
    back = np.linalg.inv(np.array(head.turn, np.float64))
    turned = (given - np.array(head.centres)[np.array(head.group)]) @ back
    return [np.where(np.arange(32) < cut, read, 1) * turned @ back.T for cut in CUTS for read in (0, 0.5, 50)]


def odd(model: Decoder, head: Head) -> mx.array:
    """States made to deceive, N D."""
    given, rng = table(model), np.random.default_rng(3)
    plain = np.array(text_like(model, 60).astype(mx.float32), np.float64)
    scaled = [size * plain[:20] for size in (0, 1e-44, 1e-38, 1e-20, 1e-9, 1e-3, 30, 1e4, 1e8, 1e12, 1e20, 1e37)]
    ones, others = (np.tile(given[rng.permutation(96)], (20, 1)) for _ in range(2))
    level = between(ones, others, 3 * (ones + others) + rng.normal(size=ones.shape))
    found = [plain, *scaled, given, -given, *along(head, given), level, level * (1 + 1e-6 * rng.normal(size=(32,)))]
    return mx.array(np.concatenate(found), mx.float32).astype(model.norm.weight.dtype)


def wrong(model: Decoder, head: Head, states: mx.array) -> int:
    """Tokens that are proven, and not the whole head's."""
    scored, said = head(states), mx.argmax(model.head(states), axis=-1)
    return int((scored.proven & (scored.token != said)).sum().item())


def bounds(model: Decoder, head: Head, states: mx.array) -> list[tuple[np.ndarray, np.ndarray]]:
    """What each rung says is the most that logits can be, and what they are in double precision, N V."""
    asked, found = head.ask(states), []
    logits = np.array(asked.state, np.float64) @ table(model).T
    for rung in range(len(CUTS)):
        asked = head.read(asked, rung)
        found.append((np.array(head.most(asked, rung), np.float64), logits))
    return found


def short(model: Decoder, head: Head, states: mx.array) -> int:
    """Logits above their bound."""
    return sum(int((bound < said).sum()) for bound, said in bounds(model, head, states))


@pytest.mark.parametrize("case", CASES)
def test_what_is_proven_is_what_the_whole_head_says(case):
    model, _, head = made(case)
    states = odd(model, head)
    assert wrong(model, head, states) == 0
    assert 0.02 < head(states).proven.astype(mx.float32).mean().item() < 0.9, "both happen"


@pytest.mark.parametrize("case", CASES)
def test_no_logit_is_above_its_bound_and_some_reach_it(case):
    model, _, head = made(case)
    states = odd(model, head)
    assert short(model, head, states) == 0
    reached = mx.array(np.concatenate(along(head, table(model))), mx.float32)
    room = [bound - said for bound, said in bounds(model, head, reached)]
    size = np.linalg.norm(np.array(reached, np.float64), axis=1, keepdims=True)
    assert all((gap / size).min() < 1e-4 for gap in room)


@pytest.mark.parametrize("broken", ["a tenth", "rounding"])
def test_a_bound_a_little_too_low_is_found_out(broken):
    model, _, head = fresh("no soft cap")
    if broken == "a tenth":
        head.tails = 0.9 * head.tails
    else:
        head.slack = mx.zeros_like(head.slack)
    assert short(model, head, odd(model, head)) > 0


@pytest.mark.parametrize("broken", ["half a length", "no rounding", "no rounding of logits"])
def test_a_bound_that_is_too_low_is_found_out(broken):
    model, config, head = fresh("bfloat16" if broken == "no rounding of logits" else "no soft cap")
    states = odd(model, head)
    if broken == "half a length":
        head.tails = head.tails / 2
    elif broken == "no rounding":
        head.config, head.slack = replace(config, slip=0, unit=0), mx.zeros_like(head.slack)
    else:
        head.config = replace(config, unit=0)
    assert wrong(model, head, states) > 0


@pytest.mark.parametrize("case", CASES)
def test_with_the_whole_head_behind_it_every_token_is_right(case):
    model, _, head = made(case)
    states = odd(model, head)
    known = head.exact(model.head, states)
    assert np.array_equal(known.token, np.array(mx.argmax(model.head(states), axis=-1)))
    assert set(known.rung) == set(range(len(CUTS) + 1)), "every rung proves something, and none all"


@pytest.mark.parametrize("case", ["shares some", "no soft cap", "4 bits"])
def test_of_equal_rows_the_lowest_is_said_and_nothing_is_proven(case):
    model, _, head = made(case)
    twin = rows(model, mx.array(TWINS[:1]))
    state = (4 * twin).astype(model.norm.weight.dtype)
    assert mx.argmax(model.head(state)).item() == TWINS[0]
    scored = head(state)
    assert scored.token.item() == TWINS[0] and not scored.proven.item()
    assert mx.abs(scored.first - scored.second).item() < 1e-4
    assert head.exact(model.head, state).token.item() == TWINS[0]


def test_states_that_are_no_numbers_are_left_to_the_whole_head():
    model, _, head = made("shares some")
    states = mx.array([[float("nan")] * 32, [float("inf")] * 32, [0.0] * 32])
    assert not head(states).proven.any()
    assert (head.exact(model.head, states).rung == len(CUTS)).all()


def test_no_closed_row_has_more_than_is_said_and_the_second_is_the_next_best():
    model, _, head = made("no soft cap")
    states = text_like(model, 300)
    scored, logits = head(states), np.array(model.head(states), np.float64)
    first, second, closed = (np.array(a, np.float64) for a in (scored.first, scored.second, scored.closed))
    np.testing.assert_allclose(logits[np.arange(300), np.array(scored.token)], first, rtol=1e-5, atol=1e-5)
    assert np.isclose(logits[..., None], second[:, None, None], rtol=1e-5, atol=1e-5).any((1, 2)).all()
    for row, two, bound in zip(logits, second, closed, strict=True):
        assert (row > two + 1e-4).sum() <= 1 or bound > two, "what is above the second was opened, or may be closed"
        assert (row > bound + 1e-4).sum() <= OPENED


def test_states_of_any_shape():
    model, _, head = made("shares some")
    states = text_like(model, 12)
    flat, boxed, one = head(states), head(states.reshape(2, 3, 2, 32)), head(states[5])
    for a, b, c in zip(flat, boxed, one, strict=True):
        assert b.shape == (2, 3, 2) and c.shape == ()
        np.testing.assert_allclose(np.array(b).reshape(12), np.array(a), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.array(c), np.array(a[5]), rtol=1e-5, atol=1e-5)
    known = head.exact(model.head, states.reshape(2, 6, 32))
    assert known.token.shape == known.rung.shape == (2, 6)


def test_multiplications_are_counted():
    _, _, head = made("shares some")
    begun, rung = 32 * 32 + 3 * 32, 2 * 96 + OPENED * 32  # to turn and for the centres; two lengths, rows opened
    assert head.macs == begun + 20 * 96 + rung
    assert head.climb == (begun + 4 * 96 + rung, begun + 10 * 96 + 2 * rung, begun + 20 * 96 + 3 * rung)


def test_built_twice_it_is_the_same_and_another_seed_finds_other_clusters():
    model, _, head = made("shares some")
    states = text_like(model, 200, 1)
    (_, again), (_, other) = (built(model, states, clusters=3, cuts=CUTS, opened=OPENED, seed=s) for s in (0, 7))
    same = lambda one: [mx.array_equal(one[k], head[k]).item() for k in ("turn", "centres", "group", "tails", "slack")]
    assert all(same(again)) and not any(same(other)[:2])
    assert wrong(model, other, odd(model, other)) == 0


def test_it_comes_back_from_disk(tmp_path):
    model, config, head = made("shares some")
    saved.save(tmp_path, config, head)
    back, states = saved.load(tmp_path, Config, lambda of: Head(of, model)), text_like(model, 20)
    assert back.config == config
    for a, b in zip(head(states), back(states), strict=True):
        assert mx.array_equal(a, b)


def test_of_a_head_in_half_precision_nothing_is_promised():
    model = model_of("shares some")
    model.set_dtype(mx.float16)
    with pytest.raises(ValueError, match="float16"):
        built(model, text_like(model, 50), clusters=1, cuts=CUTS, opened=OPENED)


def test_of_text_the_shipped_model_proves_most_and_saves_something():
    loaded = agp.load("tiny-gemma4", dtype="float32")
    model, tokenizer = loaded.model, loaded.tokenizer

    def states(split: str, count: int) -> mx.array:
        items = [families.item(family, split, i) for family in families.FAMILIES for i in range(count)]
        texts = [tokenizer.encode(f"{item.prompt}\n{item.answer}")[:64] for item in items]
        found = [model.normed(model.blocks(model.embed(mx.array([ids]))).hidden)[0] for ids in texts]
        return mx.concatenate(found)

    given = states("test", 1)
    _, head = built(model, states("find", 2), clusters=1, cuts=(32, 64, 96, 128), opened=64)
    known = head.exact(model.head, given)
    assert np.array_equal(known.token, np.array(mx.argmax(model.head(given), axis=-1)))
    cost = np.array([*head.climb, head.climb[-1] + 2048 * 192])[known.rung].mean() / (2048 * 192)
    assert (known.rung < 4).mean() > 0.9 and cost < 0.75
