"""The gate of every MLP, against float64 and where its exponential would overflow."""

import mlx.core as mx
import numpy as np
import torch

from agp.layers import gelu_times

X = np.concatenate([np.linspace(-12, 12, 4001), [-1e4, -60.0, 60.0, 1e4]]).astype(np.float32)


def both(gate):
    summed = mx.grad(lambda g: gelu_times(g, mx.ones_like(g)).sum())
    return np.array(gelu_times(gate, mx.ones_like(gate))), np.array(summed(gate))


def test_values_and_slopes_are_those_of_float64():
    true = torch.tensor(X, dtype=torch.float64, requires_grad=True)
    value = torch.nn.functional.gelu(true, approximate="tanh")
    value.sum().backward()
    assert true.grad is not None
    ours, slopes = both(mx.array(X))
    np.testing.assert_allclose(ours, value.detach().numpy(), rtol=3e-7, atol=5e-7)
    np.testing.assert_allclose(slopes, true.grad.numpy(), rtol=1e-6, atol=2e-6)


def test_nothing_overflows_far_out():
    for array in both(mx.array([-1e9, -1e4, -60.0, 60.0, 1e4, 1e9])):
        assert np.isfinite(array).all()
