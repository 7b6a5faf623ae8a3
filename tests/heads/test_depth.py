"""The depth module sees what a skipped block would see and no more, begins as one, and leaves the decoder alone.

Seen to fail when broken: keys of later positions, weights that are not shares, an adapter left out, positions that are
not counted in the loss.
"""

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from agp.adapters import attach, current, fill
from agp.layers import Place
from agp.sites import Site, record
from agp.targets import design
from agp.train import FitConfig, fit
from heads import saved
from heads.depth import SHARE, Config, Head, loss
from heads.vocabulary import rows
from tests.toys import text, toy

CASES = [("gemma4", "shares some"), ("gemma4", "no soft cap"), ("gemma3n", "shares some")]
TAPS = (3, 4)
LENGTH = 17


def made(model, seed=1):
    """A module that says something: it begins with an MLP that is silent."""
    mx.random.seed(seed)
    config = Config(taps=len(TAPS), blocks=(4, 5), width=8)
    head = Head(config, model)
    head.asked = mx.random.normal(head.asked.shape)
    head.down.weight = 0.3 * mx.random.normal(head.down.weight.shape)
    return config, head


def met(model, tokens, pad=None):
    """States at the taps, T B L D; where they stand; and the keys and values that blocks left."""
    taken = {}
    stream = model.blocks(model.embed(tokens, pad=pad), visit=record(taken, [Site(tap, "block") for tap in TAPS]))
    return mx.stack(list(taken.values())), Place(tokens.shape[1], pad), stream.shared


@pytest.fixture(params=CASES, ids=lambda case: " ".join(case))
def model(request):
    return toy(*request.param)


def test_what_it_says_does_not_depend_on_later_positions(model):
    _, head = made(model)
    tokens = text()
    other = mx.concatenate([tokens[:, :10], (tokens[:, 10:] + 1) % 96], axis=1)
    for one, two in zip(head(*met(model, tokens)), head(*met(model, other)), strict=True):
        np.testing.assert_allclose(np.array(one)[:, :10], np.array(two)[:, :10], atol=2e-5)
        assert np.abs(np.array(one)[:, 10:] - np.array(two)[:, 10:]).max() > 0.01


def test_it_depends_on_positions_before_beyond_what_their_states_told(model):
    """By keys and values: the state of the position itself stays."""
    _, head = made(model)
    states, place, shared = met(model, text())
    moved = {kind: kv._replace(values=kv.values.at[:, :, 14].add(1.0)) for kind, kv in shared.items()}
    before, after = (np.array(head(states, place, of).state) for of in (shared, moved))
    assert np.array_equal(before[:, :14], after[:, :14]) and np.abs(before - after)[:, 15].min(1).max() > 1e-4


def test_a_document_beside_another_is_mended_as_if_alone(model):
    """Whatever is on its left, and whoever beside it."""
    _, head = made(model)
    tokens = text()
    alone = head(*met(model, tokens[1:, 5:]))
    beside = head(*met(model, mx.concatenate([tokens[:1], mx.pad(tokens[1:, 5:], [(0, 0), (5, 0)])]), mx.array([0, 5])))
    for one, of in zip(alone, beside, strict=True):
        np.testing.assert_allclose(np.array(one)[0], np.array(of)[1, 5:], atol=5e-5)


def test_only_the_last_positions_may_be_asked_for(model):
    _, head = made(model)
    states, place, shared = met(model, text())
    whole, few = head(states, place, shared), head(states[:, :, -3:], place, shared)
    for one, of in zip(whole, few, strict=True):
        np.testing.assert_allclose(np.array(one)[:, -3:], np.array(of), atol=2e-5)


def test_the_weights_of_the_taps_are_shares_and_begin_with_the_last(model):
    _, head = made(model)
    weights = np.array(head(*met(model, text())).weights)
    assert weights.shape == (2, LENGTH, len(TAPS)) and (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert weights.std(axis=(0, 1)).max() > 0.05  # each token has its own
    head.asked = mx.zeros_like(head.asked)
    first = np.array(head(*met(model, text())).weights)
    assert (first[..., -1] > first[..., 0]).all() and first.std(axis=(0, 1)).max() < 1e-6


def test_a_state_that_counts_for_nothing_changes_nothing(model):
    _, head = made(model)
    states, place, shared = met(model, text())
    head.asked = mx.zeros_like(head.asked)
    head.bias = mx.array([-1e9, 0.0])
    other = mx.concatenate([5 - states[:1], states[1:]])
    assert mx.allclose(head(states, place, shared).state, head(other, place, shared).state, atol=1e-6)


@pytest.mark.parametrize("dora", [False, True])
def test_its_attention_begins_as_a_share_of_the_blocks_own_adapter_and_all(dora, model):
    adapter = replace(design(model, "attention", rank=2), dora=dora)
    attach(model, adapter)
    parts = {path: module for path, module in model.named_modules() if path in adapter.parts}
    fill(parts, {name: mx.random.normal(a.shape) for name, a in current(model)[1].items()})
    _, head = made(model)
    _, place, shared = met(model, text())
    asks = mx.random.normal((2, LENGTH, model.config.hidden_size))
    kinds = {model.config.layer_types[block]: block for block in (4, 5)}
    assert head.attention.keys() == kinds.keys() and len(kinds) == 2
    for kind, block in kinds.items():
        theirs = model.layers[block].self_attn(asks, place, shared[kind], None, None)[0]
        own = head.attention[kind](asks, place, shared[kind], None, None)[0]
        np.testing.assert_allclose(np.array(own), SHARE * np.array(theirs), rtol=1e-3, atol=1e-4)
        bare = (
            asks @ head.attention[kind].q_proj.weight.T - asks @ parts[f"layers.{block}.self_attn.q_proj"].base.weight.T
        )
        assert mx.abs(bare).max() > 0.1  # an adapter left out would have been seen


def test_it_begins_with_a_quantized_block_as_it_multiplies():
    model = toy()
    nn.quantize(model, 32, 8, class_predicate=lambda path, of: path.endswith(("q_proj", "o_proj", "embed_tokens")))
    _, head = made(model)
    _, place, shared = met(model, text())
    asks = mx.random.normal((2, LENGTH, 32))
    for kind, block in (("sliding_attention", 4), ("full_attention", 5)):
        assert isinstance(model.layers[block].self_attn.q_proj, nn.QuantizedLinear)
        theirs = model.layers[block].self_attn(asks, place, shared[kind], None, None)[0]
        own = head.attention[kind](asks, place, shared[kind], None, None)[0]
        np.testing.assert_allclose(np.array(own), SHARE * np.array(theirs), rtol=1e-3, atol=1e-4)
    assert all(a.dtype == mx.float32 for _, a in tree_flatten(head.trainable_parameters()))


def test_multiplications_are_those_of_its_linears(model):
    config, head = made(model)
    linears = [m.weight.shape for _, m in head.named_modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 2 * 2 + 3
    dim, streams = model.config.hidden_size, getattr(model.config, "altup_num_inputs", 1)
    assert head.macs == config.taps * dim + (streams - 1) * dim**2 + sum(a * b for a, b in linears)


def test_of_a_fresh_module_whose_attention_is_silent_the_last_tap_is_said_as_the_lens_says_it(model):
    """All streams of it."""
    _, head = made(model)
    head.asked, head.bias = mx.zeros_like(head.asked), mx.array([-1e9, 0.0])
    head.down.weight = mx.zeros_like(head.down.weight)
    for attention in head.attention.values():
        attention.o_proj.weight = mx.zeros_like(attention.o_proj.weight)
    states, place, shared = met(model, text())
    mended, lens = model.norm(head(states, place, shared).state), model.norm(model.together(states[-1]))
    np.testing.assert_allclose(np.array(mended), np.array(lens), rtol=2e-3, atol=2e-3)


def test_the_loss_is_a_slow_cross_entropy_of_the_chosen_positions(model):
    _, head = made(model)
    states, place, shared = met(model, text())
    ids, rng = mx.array([2, 9, 30, 31, 50, 95]), np.random.default_rng(0)
    taught = rng.random((2, LENGTH, 6)).astype(np.float32) / 8
    chosen = rng.random((2, LENGTH)) < 0.4
    told = head(states, place, shared).state
    logits = np.array(model.head(model.norm(told)), np.float64)[..., np.array(ids)]
    slow = 0.0
    for b, n in np.argwhere(chosen):
        logs = logits[b, n] - np.log(np.exp(logits[b, n]).sum())
        slow -= (taught[b, n] * logs).sum()
    given = rows(model, ids), mx.array(taught), mx.array(chosen)
    summed, count = loss(head, model, states, place, shared, *given)
    assert summed.item() == pytest.approx(slow, rel=1e-4) and count.item() == chosen.sum()


def test_training_lowers_the_loss_and_leaves_the_decoder_alone(model, tmp_path):
    model.freeze()
    before = {name: np.array(a) for name, a in tree_flatten(model.parameters())}
    _, head = made(model)
    states, place, shared = met(model, text())
    ids = mx.arange(96)
    taught = mx.softmax(model.head(model.norm(model.together(states[1]))), axis=-1)
    given = states[:, :, 2:], place, shared, rows(model, ids), taught[:, 2:], mx.ones((2, LENGTH - 2))

    def missed(head, states):
        return loss(head, model, states, *given[1:])

    first = missed(head, given[0])[0].item()
    fit(head, missed, lambda step, micro: (given[0],), FitConfig(steps=30, rate=1e-2), tmp_path)
    assert missed(head, given[0])[0].item() < 0.98 * first
    after = dict(tree_flatten(model.parameters()))
    assert all(np.array_equal(before[name], np.array(a)) for name, a in after.items())
    assert not tree_flatten(model.trainable_parameters())
    trained = {name.split(".")[-2] for name, _ in tree_flatten(head.attention)}
    assert trained == {"q_proj", "o_proj", "q_norm"}


def test_a_module_comes_back_from_disk_to_the_bit(model, tmp_path):
    config, head = made(model)
    saved.save(tmp_path, config, head)
    back = saved.load(tmp_path, Config, lambda of: Head(of, model))
    for one, of in zip(head(*met(model, text())), back(*met(model, text())), strict=True):
        assert mx.array_equal(one, of)
