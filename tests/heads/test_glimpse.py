"""A glance says of a state what the whole head would, were all tokens it does not look at one and the same."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from agp.models.decoder import Decoder
from heads import saved
from heads.glimpse import FACTS, LEAST, Config, Head, glimpse, most_used
from tests.toys import toy

SOME, CLEAR = np.array([3, 4, 9, 17, 40, 41, 77], np.int32), 0.5


def states(model: Decoder, count: int = 40) -> mx.array:
    return 3 * model.norm(mx.random.normal((count, model.config.hidden_size), key=mx.random.key(2)))


def table(model: Decoder) -> np.ndarray:
    """All rows of the head."""
    return np.array(model.uncapped(mx.eye(model.config.hidden_size))).T.astype(np.float64)


def slow(logits: np.ndarray, others: int, rest: np.ndarray) -> np.ndarray:
    """One state at a time: a softmax over what is looked at, and as often as there are `others` over the `rest`."""
    found = []
    for row, other in zip(logits, rest, strict=True):
        whole = np.concatenate([row, np.full(others, other)])
        share = np.exp(whole - whole.max()) / np.exp(whole - whole.max()).sum()
        first = row.argmax()
        doubt = np.log(np.delete(share, first).sum() + LEAST)
        margin = row.max() - np.sort(row)[-2]
        found.append(
            [np.log(share[first]), doubt, margin, -(share * np.log(share)).sum(), row.max(), min(margin, CLEAR)]
        )
    return np.array(found)


def capped(x: np.ndarray, cap: float | None) -> np.ndarray:
    return x if cap is None else cap * np.tanh(x / cap)


@pytest.mark.parametrize("case", [("gemma4", "shares some"), ("gemma4", "no soft cap"), ("gemma4", "its own head"),
                                  ("gemma3n", "shares some")])  # fmt: skip
def test_facts_are_those_of_a_slow_softmax(case):
    model = toy(*case)
    config, head = glimpse(model, SOME, CLEAR)
    normed, rows, cap = states(model), table(model), model.config.final_logit_softcapping
    exact = np.array(normed, np.float64)
    logits = capped(exact @ rows[SOME].T, cap)
    rest = capped(exact @ np.delete(rows, SOME, axis=0).mean(0), cap)
    glance = head(normed)
    assert config.others == 96 - len(SOME) and head.macs == (len(SOME) + 1) * 32
    np.testing.assert_allclose(np.array(glance.facts), slow(logits, config.others, rest), rtol=2e-4, atol=2e-4)
    assert np.array_equal(np.array(glance.token), SOME[logits.argmax(1)])
    assert glance.facts.shape == (40, len(FACTS))
    reached = np.array(glance.facts)[:, FACTS.index("lead")] == CLEAR
    assert 0 < reached.mean() < 1, "both sides are seen"


def test_with_all_but_one_token_looked_at_it_is_the_whole_softmax():
    model = toy()
    normed = states(model)
    last = int(table(model)[:, 0].argmin())
    _, head = glimpse(model, np.delete(np.arange(96), last).astype(np.int32), CLEAR)
    logits = np.array(model.head(normed), np.float64)
    fair = logits.argmax(1) != last
    share = np.exp(logits - logits.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    facts = np.array(head(normed).facts)[fair]
    np.testing.assert_allclose(facts[:, 0], np.log(share.max(1))[fair], atol=2e-4)
    np.testing.assert_allclose(facts[:, 3], -(share * np.log(share)).sum(1)[fair], atol=2e-4)
    assert np.array_equal(np.array(head(normed).token)[fair], logits.argmax(1)[fair]) and fair.mean() > 0.9


def test_a_state_that_is_sure_has_facts_that_are_numbers():
    model = toy("gemma4", "no soft cap")
    _, head = glimpse(model, SOME, CLEAR)
    facts = head(1e3 * states(model)).facts
    assert mx.isfinite(facts).all() and facts[:, 0].max() > -1e-6


def test_of_a_quantized_head_the_rows_are_those_it_multiplies_with():
    model = toy()
    nn.quantize(model, group_size=32, bits=8, class_predicate=lambda path, _: path == "embed_tokens")
    assert isinstance(model.embed_tokens, nn.QuantizedEmbedding)
    _, head = glimpse(model, SOME, CLEAR)
    np.testing.assert_allclose(np.array(head.rows), table(model)[SOME], rtol=1e-3, atol=1e-3)


def test_a_glance_at_everything_is_refused():
    with pytest.raises(AssertionError, match="no glance"):
        glimpse(toy(), np.arange(96), CLEAR)


def test_tokens_most_used_are_those_the_teacher_gives_most():
    ids = np.array([[5, 1, 7], [5, 2, 1], [7, 5, 9]])
    shares = np.array([[0.5, 0.3, 0.1], [0.2, 0.6, 0.1], [0.9, 0.05, 0.01]])  # 5: .75, 1: .4, 7: 1, 2: .6, 9: .01
    assert most_used(ids, np.log(shares).astype(np.float16), 3).tolist() == [2, 5, 7]
    assert most_used(ids, np.log(shares).astype(np.float16), 1).tolist() == [7]


def test_it_comes_back_from_disk_with_its_tokens(tmp_path):
    model = toy()
    config, head = glimpse(model, SOME, CLEAR)
    saved.save(tmp_path, config, head)
    back, normed = saved.load(tmp_path, Config, Head), states(model)
    for a, b in zip(head(normed), back(normed), strict=True):
        assert mx.array_equal(a, b)
