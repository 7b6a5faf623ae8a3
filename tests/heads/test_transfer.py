"""What is trained is what is sent, to the bit; and the closed form it begins with uses all that it is told."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from agp.train import FitConfig, fit
from heads import saved, transfer

D, K, N = 24, 6, 400


def made(seed=0, size=8, told_share=0.0, metric=None, span=(-1.5, 1.5)):
    """A head in closed form for states of which the token says a share."""
    rng = np.random.default_rng(seed)
    token = rng.normal(size=(N, K))
    unit = np.sqrt(told_share) * token @ rng.normal(size=(K, D)) / np.sqrt(K)
    unit += np.sqrt(1 - told_share) * rng.normal(size=(N, D)) * np.exp(np.linspace(1, -2, D))
    states = unit / np.sqrt(np.square(unit).mean(-1, keepdims=True)) * np.exp(rng.uniform(-1, 1, (N, 1)))
    unit = states / np.sqrt(np.square(states).mean(-1, keepdims=True))
    known = np.concatenate([np.ones((N, 1)), token], axis=1)
    expected = np.linalg.lstsq(known, unit, rcond=None)[0]
    left = unit - known @ expected
    head = transfer.fitted(size, span, expected, left.T @ left / N, np.eye(D) if metric is None else metric)
    return head, mx.array(states.astype(np.float32)), mx.array(token.astype(np.float32))


def error(head, states, told):
    wrong = (head(states, told) - states) / mx.sqrt(mx.square(states).mean(-1, keepdims=True))
    return np.square(np.array(wrong)).mean(0)


@pytest.mark.parametrize("size", [2, 5, 8, 24])
def test_a_payload_has_the_bytes_it_was_given_and_what_is_trained_is_what_comes_out_of_it(size):
    head, states, told = made(size=size)
    payload = head.pack(states, told)
    assert payload.shape == (N, size) and head.bytes == size and head.cost == size + 0.25
    assert mx.array_equal(head.unpack(payload, told), head(states, told))
    assert len(np.unique(payload, axis=0)) > 50


def test_sizes_beyond_those_that_were_seen_are_the_nearest_one():
    head, states, told = made()
    for scale in (1e-6, 1e6):
        out = head.unpack(head.pack(states * scale, told), told)
        assert mx.isfinite(out).all() and mx.array_equal(out, head(states * scale, told))


def test_more_bytes_are_a_smaller_error():
    errors = [error(*made(size=size)).mean() for size in (2, 4, 8, 16, 32)]
    assert all(b < 0.8 * a for a, b in zip(errors, errors[1:], strict=False)) and errors[-1] < 0.01


def test_what_the_token_says_is_not_sent():
    """The same states, with the token known and with a stranger's in its place."""
    head, states, told = made(told_share=0.9)
    assert error(head, states, told).mean() < 0.2 * error(head, states, told[::-1]).mean()


def test_bytes_go_where_the_metric_says():
    metric = np.diag([1e-3] * 20 + [1.0] * 4)  # the last four vary least
    plain, sensed = (error(*made(metric=of)) for of in (None, metric))
    assert sensed[20:].mean() < 0.3 * plain[20:].mean() and sensed[:20].mean() > 2 * plain[:20].mean()


def test_the_slope_is_that_without_steps():
    half = mx.array([0.5, 1.0, 3.5])
    x = mx.array([[0.2, 1.4, -2.9], [0.6, -0.3, 9.0]])
    slope = mx.grad(lambda x: (transfer.nearest(x, half) * mx.array([1.0, 2.0, 3.0])).sum())(x)
    assert slope.tolist() == [[1, 2, 3], [1, 2, 3]]
    assert transfer.nearest(x, half).tolist() == [[0.5, 1, -2.5], [0.5, 0, 3.5]]  # an even count has no zero


def test_slopes_reach_all_that_is_trained():
    head, states, told = made()
    _, slopes = nn.value_and_grad(head, lambda head: transfer.loss(head, states, told, mx.eye(D))[0])(head)
    found = dict(tree_flatten(slopes))
    assert sorted(found) == ["analysis.weight", "expected.bias", "expected.weight", "synthesis.weight"]
    assert all(mx.abs(slope).max().item() > 1e-3 for slope in found.values())


def test_loss_is_the_square_of_the_error_in_the_metric():
    head, states, told = made()
    root = np.random.default_rng(3).normal(size=(D, D)).astype(np.float32)
    root = root + root.T
    summed, count = transfer.loss(head, states, told, mx.array(root))
    out, s = np.array(head(states, told)).astype(float), np.array(states).astype(float)
    wrong = (out - s) / np.sqrt(np.square(s).mean(-1, keepdims=True))
    slow = sum(w @ (root @ root) @ w for w in wrong)
    assert summed.item() == pytest.approx(slow, rel=1e-4) and count.item() == N


def test_training_lowers_the_loss_and_leaves_the_span_alone(tmp_path):
    head, states, told = made(size=4)
    root = mx.diag(mx.array([1e-2] * 20 + [1.0] * 4))  # not the one it began with
    before = transfer.loss(head, states, told, root)[0].item()
    config = FitConfig(steps=60, rate=1e-2)
    fit(head, transfer.loss, lambda step, micro: (states, told, root), config, tmp_path)
    assert transfer.loss(head, states, told, root)[0].item() < 0.7 * before
    assert head.span.tolist() == [-1.5, 1.5]
    assert mx.array_equal(head.unpack(head.pack(states, told), told), head(states, told))


def test_a_head_comes_back_from_disk_to_the_bit(tmp_path):
    head, states, told = made()
    saved.save(tmp_path, head.config, head)
    back = saved.load(tmp_path, transfer.Config, transfer.Head)
    assert back.config == head.config and back.bytes == head.bytes
    np.testing.assert_array_equal(back.pack(states, told), head.pack(states, told))
    assert mx.array_equal(back.unpack(head.pack(states, told), told), head(states, told))
    assert not tree_flatten(back.trainable_parameters())
