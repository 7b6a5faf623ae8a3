"""Bytes are exactly as many as was said, and every number that can be sent comes back as it was."""

import math

import mlx.core as mx
import numpy as np
import pytest

from agp.artifacts import write_results
from agp.packet import written
from curricula import begun
from heads.codec import HEADER, PACKET, Integers, Raw, packed, room, unpacked
from tests.test_packet import learned, states, terms

DIGITS = [(2,), (256,), (257,), (3, 5, 7, 2), (64, *[3] * 90, *[2] * 37), (65536, 16, 16, 16), (256,) * 96]


@pytest.mark.parametrize("digits", DIGITS, ids=str)
def test_any_codes_come_back_from_as_few_bytes_as_can_hold_them(digits):
    rng = np.random.default_rng(0)
    most = np.array(digits) - 1
    codes = np.stack([0 * most, most, *[rng.integers(digits) for _ in range(20)]]).astype(np.int32)
    payload = packed(codes, digits)
    assert payload.shape == (22, room(digits)) and payload.dtype == np.uint8
    assert 256 ** (room(digits) - 1) < math.prod(digits) <= 256 ** room(digits)
    np.testing.assert_array_equal(unpacked(payload, digits), codes)


def test_all_payloads_of_a_small_code_are_different():
    digits = (3, 4, 5)
    codes = np.indices(digits).reshape(3, -1).T.astype(np.int32)
    assert len({line.tobytes() for line in packed(codes, digits)}) == 60


def test_bytes_that_nobody_packed_are_codes_too():
    payload = np.full((1, room((3, 5, 7))), 255, np.uint8)
    assert (unpacked(payload, (3, 5, 7)) < [3, 5, 7]).all()


def test_raw_keeps_every_bit_of_a_bfloat16():
    states = (1000 * mx.random.normal((9, 32), key=mx.random.key(0))).astype(mx.bfloat16)
    codec = Raw(32)
    payload = codec.pack(states, mx.zeros((9, 1)))
    assert payload.shape == (9, 64) and codec.bytes == 64 and codec.cost == 64.25
    assert mx.array_equal(codec.unpack(payload, mx.zeros((9, 1))).astype(mx.bfloat16), states)


@pytest.mark.parametrize("bits, group, size", [(8, 64, 66), (4, 32, 36), (2, 32, 20)])
def test_integers_are_off_by_half_a_step_at_most(bits, group, size):
    states = mx.random.normal((50, 64), key=mx.random.key(1)) * mx.exp(mx.random.normal((50, 1), key=mx.random.key(2)))
    codec, told = Integers(64, bits, group), mx.zeros((50, 1))
    payload = codec.pack(states, told)
    assert payload.shape == (50, size) and codec.bytes == size
    back = codec.unpack(payload, told)
    groups, error = (np.array(x).reshape(50, -1, group) for x in (states, back - states))
    step = np.abs(groups).max(-1) / ((2**bits - 1) / 2)
    assert (np.abs(error).max(-1) <= 0.51 * step + np.abs(groups).max(-1) * 2**-8).all()  # a scale has 8 bits
    assert np.abs(error).max() > 0.3 * step.min()
    assert mx.array_equal(codec.unpack(codec.pack(mx.zeros((1, 64)), told[:1]), told[:1]), mx.zeros((1, 64)))


@pytest.mark.prove
def test_bytes_figure():
    """A whole packet of states as wide as E2B's, by the bytes that figures of transfer count, without token ids."""
    width, found = 1536, {}
    sizes = {"raw": Raw(width).bytes, "int8": Integers(width, 8, width).bytes}
    sizes |= {f"{ratio}x": begun.room(width, ratio) for ratio in (4, 8, 16)}
    for name, size in sizes.items():
        of = (terms if name == "raw" else learned)(width=width, payload=size)
        found[name] = round(len(written(states(of, PACKET), of)) / (PACKET * size + HEADER), 4)
    figure = {"value": found, "command": "pytest -m prove tests/heads/test_codec.py"}
    write_results("packet-bytes", {"packet.bytes_ratio": figure}, positions=PACKET, payloads=sizes)
