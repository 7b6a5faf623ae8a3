"""A state as bytes: whole numbers, each with as many levels as it has, packed as the digits of one long number.

Raw states and plain integers with scales are codecs too: the yardsticks that a learned one is held against.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

HEADER, PACKET = 16, 64  # bytes that a packet begins with, and positions that share them
WORD = 1 << 16  # levels of a bfloat16


class Codec(ABC):
    """One says what its numbers are, B levels each, and makes a state of them again; `told` (N K) says which token
    stands there, which the receiver knows too."""

    @property
    @abstractmethod
    def digits(self) -> tuple[int, ...]:
        """Levels of each number."""

    @abstractmethod
    def codes(self, states: mx.array, told: mx.array) -> mx.array:
        """N D to N M, 0 ... levels - 1."""

    @abstractmethod
    def restored(self, codes: mx.array, told: mx.array) -> mx.array:
        """And back."""

    @property
    def bytes(self) -> int:
        """Of each state."""
        return room(self.digits)

    @property
    def cost(self) -> float:
        """Bytes of a position on the wire."""
        return self.bytes + HEADER / PACKET

    def pack(self, states: mx.array, told: mx.array) -> np.ndarray:
        """N B, uint8."""
        return packed(np.array(self.codes(states, told)), self.digits)

    def unpack(self, payload: np.ndarray, told: mx.array) -> mx.array:
        return self.restored(mx.array(unpacked(payload, self.digits)), told)


class Raw(Codec):
    """All values as bfloat16: nothing is lost of a model that runs in it."""

    def __init__(self, width: int):
        self.width = width

    @property
    def digits(self) -> tuple[int, ...]:
        return (WORD,) * self.width

    def codes(self, states: mx.array, told: mx.array) -> mx.array:
        return words(states)

    def restored(self, codes: mx.array, told: mx.array) -> mx.array:
        return reals(codes)


class Integers(Codec):
    """Values of so many bits, and a scale for every `group` of them."""

    def __init__(self, width: int, bits: int, group: int):
        assert width % group == 0
        self.width, self.bits, self.group = width, bits, group

    @property
    def digits(self) -> tuple[int, ...]:
        return (WORD,) * (self.width // self.group) + (1 << self.bits,) * self.width

    def codes(self, states: mx.array, told: mx.array) -> mx.array:
        half = ((1 << self.bits) - 1) / 2
        groups = states.astype(mx.float32).reshape(len(states), -1, self.group)
        scale = words(mx.abs(groups).max(-1) / half)
        steps = groups / mx.maximum(reals(scale), 1e-30)[..., None]
        return mx.concatenate([scale, mx.round(snapped(steps, half) + half).flatten(1).astype(mx.int32)], axis=-1)

    def restored(self, codes: mx.array, told: mx.array) -> mx.array:
        half, count = ((1 << self.bits) - 1) / 2, self.width // self.group
        steps = codes[:, count:].astype(mx.float32).reshape(len(codes), count, self.group) - half
        return (steps * reals(codes[:, :count])[..., None]).flatten(1)


def snapped(x: mx.array, half: mx.array | float) -> mx.array:
    """The nearest of the levels -half, 1 - half ... half."""
    return mx.clip(mx.round(x + half), 0, 2 * half) - half


def words(x: mx.array) -> mx.array:
    return x.astype(mx.bfloat16).view(mx.uint16).astype(mx.int32)


def reals(words: mx.array) -> mx.array:
    return words.astype(mx.uint16).view(mx.bfloat16).astype(mx.float32)


def room(digits: Sequence[int]) -> int:
    """Bytes that hold any such number."""
    return -(-(math.prod(digits) - 1).bit_length() // 8)


def packed(codes: np.ndarray, digits: Sequence[int]) -> np.ndarray:
    size = room(digits)
    found = np.empty((len(codes), size), np.uint8)
    for row, line in zip(found, codes.tolist(), strict=True):
        number = 0
        for code, levels in zip(line, digits, strict=True):
            number = number * levels + code
        row[:] = np.frombuffer(number.to_bytes(size, "little"), np.uint8)
    return found


def unpacked(payload: np.ndarray, digits: Sequence[int]) -> np.ndarray:
    """Bytes that no `packed` made are some state too: a receiver need not trust them."""
    found = np.empty((len(payload), len(digits)), np.int32)
    for row, line in zip(found, payload, strict=True):
        number = int.from_bytes(line.tobytes(), "little")
        for at in reversed(range(len(digits))):
            number, row[at] = divmod(number, digits[at])
    return found
