"""Fewer bits are as near as they can be, lie in the file as they are told to, and small weights are left alone."""

from hashlib import sha256

import numpy as np
import pytest
from coremltools.converters.mil.mil import Function

from export import blob, compress, coreml, evaluate
from export.compress import Smaller
from export.ops import Entry, Plain

RNG = np.random.default_rng(0)
LARGE, SMALL = RNG.normal(size=(64, 48)) * np.exp(RNG.normal(size=(64, 1))), RNG.normal(size=(8, 64))
ENTRY = Entry({"x": (48, 8)}, lambda o, given: {"y": o.conv(o.gelu(o.conv(given["x"], LARGE)), SMALL)})
NEAR = {"int8": 0.01, "palette": 0.1}  # of the largest


@pytest.fixture(scope="module", params=compress.KINDS)
def made(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("package") / "heads.mlpackage"
    weights = coreml.save(path, {"a": ENTRY, "b": ENTRY}, "a", Smaller(request.param, 4096))
    return request.param, path, weights


def test_only_what_is_large_is_in_fewer_bits_and_all_lies_in_the_file_as_it_was_told(made):
    kind, path, weights = made
    found = blob.blobs(path)
    assert {of.sha256 for of in found} == weights
    assert {of.type for of in found} == {"float16", {"int8": "int8", "palette": "uint6"}[kind]}
    few = next(of for of in found if of.type != "float16")
    assert few.bytes == LARGE.size * {"int8": 8, "palette": 6}[kind] // 8
    assert sha256(SMALL[:, :, None, None].astype(np.float16).tobytes()).hexdigest() in weights


def test_it_says_nearly_what_was_described(made):
    kind, path, _ = made
    x = RNG.normal(size=(1, 48, 1, 8)).astype(np.float16)
    wanted = ENTRY.describe(Plain(), {"x": x.astype(np.float64)})["y"]
    found = evaluate.run(evaluate.load(path), "b", {"x": x}, exact=True)["y"]
    far = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 1e-4 < far < NEAR[kind]


def colours(weight):
    with Function({}, opset_version=coreml.TARGET):
        _, (_, lut) = compress.palette(weight.astype(np.float16)[:, :, None, None])
    return lut.reshape(-1).astype(np.float64)


def test_a_palette_is_better_than_even_steps_and_keeps_what_there_is():
    weight = RNG.standard_t(3, size=(100, 200))
    lost = lambda of: np.square(np.abs(weight[..., None] - of).min(-1)).mean()
    assert lost(colours(weight)) < 0.1 * lost(np.linspace(weight.min(), weight.max(), 64))
    few = np.array([[-1.0, 0.5, 3.0]])
    assert set(few.flat) <= set(colours(few))


def test_rows_of_zeros_and_the_smallest_numbers_stay_numbers():
    weight = np.zeros((4, 8, 1, 1), np.float16)
    weight[1] = 2.0**-24
    with Function({}, opset_version=coreml.TARGET):
        _, (steps, scale) = compress.int8(weight)
    assert np.isfinite(scale).all() and np.array_equal(steps * scale.astype(np.float64), weight)
