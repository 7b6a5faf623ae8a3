"""A few positions by a large matrix: the same product in pieces. Small ones, many positions and halves stay whole."""

import os
import subprocess
import sys
from threading import Thread

import mlx.core as mx
import numpy as np
import pytest

from agp import products
from agp.fused import FEW
from agp.products import LEAST, SMALL, Embedding, Linear, pieces, times


@pytest.fixture(autouse=True, params=[False, True], ids=["one thread", "two"])
def halved(request, monkeypatch):
    """Whatever this machine has: the product is the same."""
    monkeypatch.setattr(products, "MOST", FEW)
    monkeypatch.setattr(products, "HALVED", request.param)
    monkeypatch.setattr(products, "ALONE", 1 if request.param else FEW)
    return request.param


def random(*shape, dtype=mx.float32):
    return mx.array(np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)).astype(dtype)


@pytest.mark.parametrize("lead", [(1, 1), (1, 5), (3, 2), (FEW, 1), (4,), (2, 2, 2)])
@pytest.mark.parametrize("height, width", [(960, 1200), (2048, 700), (997, 1500), (64, 90_000)])
def test_a_product_in_pieces_is_the_product(lead, height, width):
    x, weight = random(*lead, width), random(height, width)
    found, wanted = np.array(times(x, weight)), np.array(x, np.float64) @ np.array(weight, np.float64).T
    assert (
        found.shape == (*lead, height) and np.abs(found - wanted).max() <= 2e-5 * np.sqrt(width) * np.abs(wanted).mean()
    )


def test_rows_of_a_larger_matrix_are_taken_where_they_lie():
    """As regimes do: neither rows nor columns need stand close together."""
    weight, x = random(1200, 2000), random(1, 5, 1000)
    assert mx.allclose(times(x, weight[200:1160, 500:1500]), x @ weight[200:1160, 500:1500].T, rtol=1e-4, atol=1e-3)


def test_pieces_are_equal_small_and_no_more_than_are_needed():
    for rows in range(1, FEW + 1):
        for height, width in ((960, 960), (3840, 960), (9216, 2304), (262_144, 1536)):
            count = pieces(rows, height, width)
            assert height % count == 0 and rows * (height // count) * width <= SMALL and height // count >= LEAST
            assert not any(
                height % fewer == 0 and rows * (height // fewer) * width <= SMALL for fewer in range(1, count)
            )
    assert pieces(1, 768, 192) == 1 and pieces(5, 997, 1500) == 1 and pieces(8, 64, 90_000) == 1


def test_only_a_few_positions_of_single_precision_are_cut(monkeypatch, halved):
    asked = []
    monkeypatch.setattr(products, "pieces", lambda *of: asked.append(of) or pieces(*of))
    monkeypatch.setattr(products, "LARGE", 0)
    weight = random(2048, 700)
    times(random(1, FEW + 1, 700), weight)
    times(random(1, 2, 700, dtype=mx.bfloat16), weight.astype(mx.bfloat16))
    assert not asked
    times(random(1, FEW, 700), weight)
    assert set(asked) == ({(FEW, 1024, 700)} if halved else {(FEW, 2048, 700)})
    monkeypatch.setattr(products, "HALVED", False)
    monkeypatch.setattr(products, "ALONE", 1)
    asked.clear()
    times(random(1, 2, 700), weight)
    assert not asked, "which two threads take whole"
    times(random(1, 1, 700), weight)
    assert set(asked) == {(1, 2048, 700)}


def test_every_thread_has_halves_of_its_own(halved):
    """A stream is its thread's alone: who multiplied on another's would end with an error."""
    x, weight = random(1, 2, 960), random(960, 1200)[:, :960]
    mx.eval(x, weight)
    found = []
    if not halved:
        return  # one stream alone

    def work():
        found.append(np.array(times(x, weight)))
        mx.clear_streams()  # as threads of ours do at their end

    for _ in range(3):
        thread = Thread(target=work)
        thread.start()
        thread.join()
    assert len(found) == 3 and all(np.array_equal(of, np.array(times(x, weight))) for of in found)


def test_layers_multiply_so_and_learn_as_ever():
    layer, x = Linear(1200, 960), random(1, 3, 1200)
    assert mx.allclose(layer(x), x @ layer.weight.T + layer.bias, rtol=1e-4, atol=1e-5)
    rows = Embedding(2048, 700)
    assert mx.allclose(rows.as_linear(x[..., :700]), x[..., :700] @ rows.weight.T, rtol=1e-4, atol=1e-5)
    slope = mx.grad(lambda w: (times(x, w) ** 2).sum())
    plain = mx.grad(lambda w: ((x @ w.T) ** 2).sum())
    assert mx.allclose(slope(layer.weight), plain(layer.weight), rtol=1e-3, atol=1e-4)


ABSENT = """
import ctypes
load = ctypes.CDLL
def absent(name, *how, **more):
    if "openblas" in str(name):
        raise OSError("no such library")
    return load(name, *how, **more)
ctypes.CDLL = absent
import agp
from agp import products
print(products.MOST, products.HALVED)
"""


def test_without_openblas_a_product_is_whole():
    """As on a Mac: nobody is asked for threads."""
    quiet = os.environ | {"AGP_QUIET": "1"}
    found = subprocess.run([sys.executable, "-c", ABSENT], capture_output=True, text=True, env=quiet)
    assert found.stdout == "0 False\n", found.stderr
