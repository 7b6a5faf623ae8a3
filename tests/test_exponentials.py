"""By whichever library, they are exp and tanh, and so are their slopes. Seen to fail: a slope of 1 - y."""

import mlx.core as mx
import numpy as np
import pytest

from agp.exponentials import MANY, by_numpy, exp, tanh

X = np.concatenate([np.linspace(-30, 30, MANY), [-1e4, -0.0, 1e-8, 88.0]]).astype(np.float32)
PAIRS = [(exp, mx.exp, np.exp), (tanh, mx.tanh, np.tanh)]


@pytest.mark.parametrize("ours, mlx, true", PAIRS, ids=["exp", "tanh"])
def test_values_are_those_of_float64(ours, mlx, true):
    turned = np.stack([X, X[::-1]]).T  # lies otherwise in memory
    for x in (mx.array(X), mx.array(turned), mx.array(turned.T.copy()).T):
        found = np.array(ours(x))
        assert found.dtype == np.float32 and found.shape == x.shape
        np.testing.assert_allclose(found, true(np.array(x).astype(float)), rtol=3e-7, atol=1e-37)


@pytest.mark.parametrize("ours, mlx, true", PAIRS, ids=["exp", "tanh"])
@pytest.mark.parametrize("count", [MANY // 2, len(X) - 1])
def test_slopes_are_those_of_mlx_compiled_or_not(ours, mlx, true, count):
    x, due = mx.array(X[:count]), mx.random.normal((count,))

    def slope(of):
        return mx.grad(lambda x: (of(x * 0.5) * due).sum())

    for found in (slope(ours)(x), mx.compile(slope(ours))(x)):
        np.testing.assert_allclose(np.array(found), np.array(slope(mlx)(x)), rtol=2e-6, atol=5e-7)
    assert by_numpy(x) == (count >= MANY and mx.default_device() == mx.cpu)
