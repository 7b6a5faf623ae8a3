"""As arithmetic on columns, the semantic head takes the latents it takes in MLX, and as much of each."""

import mlx.core as mx
import numpy as np
import pytest

from export import semantic as described
from export.ops import Plain
from heads.semantic import NEVER, Config, Head
from tests.export.columns import columns, rows

WIDTH, COUNT = 24, 300


def made(concepts=True):
    """Some thresholds are ones that no state reaches."""
    types, names = ((3, 2, 1), ("a", "b", "c", "d", "e", "f")) if concepts else ((0, 0, 0), ())
    head = Head(Config(state=WIDTH, concepts=names, types=types, width=40, picks=3, settle=1))
    head.naming.weight = mx.random.normal(head.naming.weight.shape)
    head.naming.bias = mx.random.normal(head.naming.bias.shape)
    head.mean, head.usual = 0.2 * mx.random.normal((WIDTH,)), mx.array(1.0)
    head.limits = mx.array([3.0, 5.0, NEVER, 4.0, 6.0, 2.0][: sum(types)])
    head.levels = mx.array(np.random.default_rng(0).choice([1.5, 2.5, 3.5, NEVER], (3, 40)))
    return head


@pytest.mark.parametrize("concepts", [True, False])
def test_the_same_latents_are_active_by_as_much(concepts):
    head = made(concepts)
    states = 5 * mx.random.normal((COUNT, WIDTH))
    wanted, _, _ = head(states, exactly=False)
    scores, values = described.code(Plain(), head, columns(states))
    if scores is None:
        assert not concepts
    else:
        np.testing.assert_allclose(rows(scores), np.array(wanted.scores), rtol=1e-4, atol=1e-4)
    assert 0.02 < (rows(values) > 0).mean() < 0.5
    np.testing.assert_allclose(rows(values), np.array(wanted.values), rtol=1e-3, atol=1e-3)


def test_a_state_of_zeros_and_one_on_which_nothing_is_picked_are_numbers_too():
    head = made()
    head.limits, head.levels = mx.full(head.limits.shape, NEVER), mx.full(head.levels.shape, NEVER)
    for states in (mx.zeros((2, WIDTH)), mx.random.normal((5, WIDTH))):
        _, values = described.code(Plain(), head, columns(states))
        assert (values == 0).all()
