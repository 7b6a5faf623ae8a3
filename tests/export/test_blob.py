"""Weights are read from bytes alone, and a byte that turned is not what was described."""

import numpy as np
import pytest

from export import blob, coreml
from export.ops import Entry

RNG = np.random.default_rng(0)
ONE, TWO = (RNG.normal(size=(24, 24)) for _ in range(2))


def twice(o, given):
    return {"y": o.conv(o.gelu(o.conv(given["x"], ONE)), TWO)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    package = tmp_path_factory.mktemp("package") / "two.mlpackage"
    return package, coreml.save(package, {"main": Entry({"x": (24, 8)}, twice)}, "main")


def test_every_weight_in_the_file_is_one_that_was_handed_over(made):
    package, handed = made
    found = blob.blobs(package)
    assert {of.sha256 for of in found} == handed and len(found) == 2
    assert {(of.type, of.bytes) for of in found} == {("float16", 2 * 24 * 24)}


def test_a_turned_bit_is_found(made, tmp_path):
    package, handed = made
    path = tmp_path / "other" / blob.WEIGHTS
    path.parent.mkdir(parents=True)
    data = bytearray((package / blob.WEIGHTS).read_bytes())
    data[blob.blobs(package)[1].offset + 100] ^= 1
    path.write_bytes(data)
    assert [of.sha256 in handed for of in blob.blobs(tmp_path / "other")] == [True, False]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda data: data[:10], "it is no file of weights"),
        (lambda data: b"\x03" + data[1:], "says it holds 3 weights and holds 2"),
        (lambda data: data[:4] + b"\x01" + data[5:], "is of version 1"),
        (lambda data: data[:64] + b"\x00" + data[65:], "at byte 64 no weight begins"),
        (lambda data: data[:-300], "no weight begins, where one should"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(made, tmp_path, change, said):
    path = tmp_path / blob.WEIGHTS
    path.parent.mkdir(parents=True)
    path.write_bytes(change((made[0] / blob.WEIGHTS).read_bytes()))
    with pytest.raises(ValueError, match=said):
        blob.blobs(tmp_path)


def test_equal_descriptions_have_equal_digests_and_others_have_others(made, tmp_path):
    again, other = tmp_path / "again.mlpackage", tmp_path / "other.mlpackage"
    coreml.save(again, {"main": Entry({"x": (24, 8)}, twice)}, "main")
    coreml.save(other, {"main": Entry({"x": (24, 8)}, lambda o, given: {"y": o.conv(given["x"], TWO)})}, "main")
    assert coreml.content(again) == coreml.content(made[0]) != coreml.content(other)


@pytest.mark.parametrize("size", [1e5, np.inf, np.nan])
def test_a_weight_that_half_precision_cannot_hold_is_refused(tmp_path, size):
    entry = Entry({"x": (24, 8)}, lambda o, given: {"y": o.conv(given["x"], size * ONE)})
    with pytest.raises(ValueError, match=r"a weight \(24, 24, 1, 1\) holds .*; half precision holds 65,504 at most"):
        coreml.save(tmp_path / "x.mlpackage", {"main": entry}, "main")
