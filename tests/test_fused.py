"""On a CPU norms and rotations take a shorter way; it gives the bits of `mx.fast`, and its gradients.

Seen to fail when broken: the sine's sign, angles kept for another rope, a norm's weight before its rounding, squares
added by MLX, the mean's share left out of a slope.
"""

import mlx.core as mx
import numpy as np
import pytest

from agp import fused
from agp.fused import Rope, rms_norm

pytestmark = pytest.mark.skipif(not fused.CPU, reason="a GPU runs mx.fast itself")
HOW = {
    "default": {"rope_type": "default", "rope_theta": 10_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 8.0},
    "a quarter": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
}
KINDS = pytest.mark.parametrize("kind", [mx.float32, mx.bfloat16, mx.float16], ids=str)


def some(*shape: int, kind: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape).astype(kind)


@KINDS
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("weighed", [True, False])
def test_the_norm_of_one_position_has_the_bits_of_the_fused_one(rows, weighed, kind):
    weight = some(64, kind=kind) if weighed else None
    for x in (some(rows, 1, 64, kind=kind), some(rows, 1, 4, 64, kind=kind)):
        ours = rms_norm(x, weight, 1e-6)
        assert ours.dtype == kind
        assert mx.array_equal(ours, mx.fast.rms_norm(x, weight, 1e-6))


def test_the_norm_of_one_position_has_the_gradient_of_the_fused_one():
    x, weight, out = some(2, 1, 64), some(64), some(2, 1, 64)
    ours, fast = (
        mx.grad(lambda x, w, norm=norm: (norm(x, w, 1e-6) * out).sum(), argnums=(0, 1))(x, weight)
        for norm in (rms_norm, mx.fast.rms_norm)
    )
    for a, b in zip(ours, fast, strict=True):
        assert mx.allclose(a, b, rtol=1e-5, atol=1e-5)


@KINDS
@pytest.mark.parametrize("weighed", [True, False])
def test_the_norm_of_many_positions_is_the_fused_one(weighed, kind):
    weight = some(64, kind=kind) if weighed else None
    for x in (some(2, 5, 64, kind=kind), some(2, 5, 4, 64, kind=kind)):
        ours = rms_norm(x, weight, 1e-6)
        assert ours.dtype == kind
        assert mx.allclose(ours, mx.fast.rms_norm(x, weight, 1e-6), rtol=1e-2 if kind != mx.float32 else 1e-6)


def test_the_norm_of_many_positions_and_its_slope_keep_their_digits():
    """Against float64, of a real width; `mx.fast` is three times as far from it."""
    x, weight, out = some(2, 40, 1536), some(1536), some(2, 40, 1536)

    def given(x, weight, out, norm):
        y, (dx, dw) = mx.vjp(norm, [x, weight], [out])
        return [np.array(a) for a in (y[0], dx, dw)]

    def plain(x, weight):
        return x * mx.rsqrt(mx.mean(x * x, axis=-1, keepdims=True) + mx.array(1e-6, mx.float64)) * weight

    with mx.stream(mx.cpu):
        exact = given(*(a.astype(mx.float64) for a in (x, weight, out)), plain)
    ours = given(x, weight, out, lambda x, w: rms_norm(x, w, 1e-6))
    for a, b, limit in zip(ours, exact, (1.5e-7, 1.5e-7, 1e-6), strict=True):
        assert np.linalg.norm(a - b) <= limit * np.linalg.norm(b)


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("length", [1, 9])
def test_a_rotation_has_the_bits_of_the_fused_one(how, length):
    rope, x = Rope(64, how), some(2, 3, length, 64)
    assert mx.array_equal(rope(x, 700, {}), rope.turn(x, 700))


@KINDS
def test_a_rotation_keeps_the_kind_of_number(kind):
    rope, x = Rope(64, HOW["default"]), some(1, 2, 5, 64, kind=kind)
    ours, exact = rope(x, 700, {}), rope.turn(x.astype(mx.float32), 700)
    assert ours.dtype == kind
    assert mx.array_equal(ours, exact.astype(kind))


def test_angles_are_made_once_a_chunk_for_all_ropes_that_turn_alike():
    known = {}
    first, twin, other = Rope(64, HOW["default"]), Rope(64, dict(HOW["default"])), Rope(64, HOW["a quarter"])
    first(some(1, 2, 5, 64), 3, known)
    twin(some(1, 2, 5, 64), 3, known)
    assert len(known) == 1
    other(some(1, 2, 5, 64), 3, known)
    first(some(1, 2, 1, 64), 7, known)
    assert len(known) == 3
