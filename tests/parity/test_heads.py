"""All heads against their twins in PyTorch: what they say, every gradient, an optimizer's step, weights both ways.

Seen to fail when broken: routes without their normalisation, a stride with a gradient, picks by another turn's values,
a mask off by one, the size's remainder thrown away.
"""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

from export import twins
from export.ruler import measure
from heads import depth, glimpse, semantic, trajectory, transfer
from tests.heads import test_depth, test_semantic, test_trajectory, test_transfer
from tests.parity import losses
from tests.parity.compared import judge
from tests.toys import text, toy

RATE, DECAY = 1e-2, 0.1


def random(*shape, seed):
    return mx.random.normal(shape, key=mx.random.key(seed))


def of_trajectory():
    """The second half of the positions was never disturbed."""
    config, n = test_trajectory.CONFIG, 64
    rng = np.random.default_rng(3)
    shape = (n, config.taps)
    vitality = np.where(np.arange(n)[:, None] < n // 2, rng.uniform(size=shape), np.nan)
    truth = [rng.integers(4, size=shape), vitality, rng.integers(2, size=shape) * 1.0, rng.uniform(size=shape)]
    truth = trajectory.Truth(*map(single, (*truth, rng.integers(config.taps + 1, size=n))))
    head = test_trajectory.random_head()
    head.zero, head.size = 0.1 * random(*head.zero.shape, seed=8), 1 + 0.1 * random(*head.size.shape, seed=9)
    return head, None, (test_trajectory.drawn(n=n), truth)


def of_semantic():
    mx.random.seed(1)
    head, n = semantic.Head(test_semantic.CONFIG), 40
    for name in ("mean", "size"):
        head[name] = 0.1 * random(*head[name].shape, seed=len(name))
    head.naming.weight = random(*head.naming.weight.shape, seed=5)
    labels = single(np.random.default_rng(0).integers(2, size=(n, 5)) * 1.0)
    return head, None, (3 * random(n, 48, seed=4), labels, mx.abs(random(n, 5, seed=6)))


def of_depth(family="gemma4"):
    model, tokens = toy(family, "shares some"), text()
    _, head = test_depth.made(model)
    pad = mx.array([0, 3]) if family == "gemma4" else None
    states, place, shared = test_depth.met(model, tokens, pad)
    rows, chosen = random(30, model.config.hidden_size, seed=7), (mx.arange(17) > 4) * mx.ones((2, 1))
    taught = mx.softmax(random(2, 17, 30, seed=2), axis=-1) * 0.9
    return head, model, (states, place, shared, rows, taught, chosen)


def of_gemma3n():
    return of_depth("gemma3n")


def of_transfer():
    head, states, told = test_transfer.made(told_share=0.5)
    return head, None, (states, told, random(24, 24, seed=4))


def single(x):
    return mx.array(np.asarray(x).astype(np.int32 if np.asarray(x).dtype.kind == "i" else np.float32))


CASES = {of.__name__.removeprefix("of_"): of for of in (of_trajectory, of_semantic, of_depth, of_gemma3n, of_transfer)}
SAYS = {trajectory.Head: 1, semantic.Head: 1, depth.Head: 3, transfer.Head: 2}  # how many arguments it takes
LOSSES = {of: (of.loss, getattr(losses, of.__name__.split(".")[-1])) for of in (trajectory, semantic, depth, transfer)}


@pytest.fixture(params=CASES, scope="module")
def case(request):
    return CASES[request.param]()


def torched(given):
    return twins.each(given, mx.array, lambda x: wide(twins.tensor(x)))


def wide(x):
    return x.double() if x.is_floating_point() else x.long()


def lost(head, decoder, given):
    """By its own loss and its twin's, with the gradients of all that learns, by name."""
    ours, theirs = next(pair for of, pair in LOSSES.items() if isinstance(head, of.Head))
    more = () if decoder is None else (decoder,)
    value, grads = nn.value_and_grad(head, lambda head: ours(head, *more, *given)[0])(head)
    twin = twins.twin(head, decoder)
    wanted = theirs(twin, *more, *torched(given))
    wanted.backward()
    return value, dict(tree_flatten(grads)), wanted, twin


def said(head, given):
    count = next(n for of, n in SAYS.items() if isinstance(head, of))
    return given[:count]


def test_a_twin_says_what_its_head_says(case):
    head, decoder, given = case
    asked = said(head, given)
    ours, theirs = head(*asked), twins.Spoken(twins.twin(head, decoder))(*asked)
    ours, theirs = (dict(tree_flatten(x if isinstance(x, tuple) else (x,))) for x in (ours, theirs))
    judge([measure(name, ours[name], theirs[name]) for name in ours])


def test_the_loss_and_every_gradient(case):
    value, grads, wanted, twin = lost(*case)
    theirs = dict(twin.named_parameters())
    judge([measure("loss", value, wanted.item())] + [measure(n, g, theirs[n].grad.numpy()) for n, g in grads.items()])


def test_one_step_of_the_optimizer(case):
    head, decoder, given = case
    _, grads, _, twin = lost(head, decoder, given)
    learning = [p for name, p in twin.named_parameters() if name in grads]
    torch.optim.AdamW(learning, RATE, weight_decay=DECAY).step()
    adam = optim.AdamW(RATE, weight_decay=DECAY, bias_correction=True)
    moved = dict(tree_flatten(adam.apply_gradients(dict(grads), dict(tree_flatten(head.trainable_parameters())))))
    theirs = dict(twin.named_parameters())
    judge([measure(name, of, theirs[name].detach().numpy()) for name, of in moved.items()])


def test_weights_go_over_and_come_back_strictly(case):
    head, decoder, _ = case
    kept = dict(tree_flatten(head.parameters()))
    twin = twins.twin(head, decoder)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(2)
    twins.returned(twin, head)
    came = dict(tree_flatten(head.parameters()))
    head.load_weights(list(kept.items()))
    assert came.keys() == kept.keys() and all(mx.array_equal(came[name], 2 * kept[name]) for name in kept)
    name = next(iter(kept))
    with pytest.raises(RuntimeError, match="Missing key"):
        twin.load_state_dict({n: twins.tensor(of) for n, of in kept.items() if n != name}, strict=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        twin.load_state_dict({n: twins.tensor(of) for n, of in kept.items()} | {"more": torch.zeros(1)}, strict=True)


@pytest.mark.parametrize("cap", [None, 3.0])
def test_a_glance(cap):
    config = glimpse.Config(count=40, others=60, dim=12, cap=cap, clear=0.7)
    head = glimpse.Head(config)
    head.ids, head.rows, head.rest = mx.arange(40) * 2, random(40, 12, seed=1), random(12, seed=2)
    normed = random(30, 12, seed=3)
    ours, theirs = head(normed), twins.Spoken(twins.twin(head))(normed)
    assert mx.array_equal(ours.token, theirs.token)
    judge([measure("facts", ours.facts, theirs.facts)])
