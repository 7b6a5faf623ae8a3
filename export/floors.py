"""What a call may cost on a chip, from what others have published: no figure of ours, and labelled so wherever shown.

A call has a floor, whatever its size; what is above it is mostly weights being read. Floors are of the engine asked
directly; Core ML adds to that, two to four times as much for small programs.
"""

from typing import NamedTuple

CORE_ML = 4.0  # times the floor, at most


class Chip(NamedTuple):
    floor: float  # milliseconds of a call that does nothing
    rate: float  # GB/s at which weights are read through Core ML


CHIPS = {"M1": Chip(0.23, 61), "M4": Chip(0.095, 64), "M5": Chip(0.11, 70)}


class Expected(NamedTuple):
    chip: str
    floor: float
    reading: float  # milliseconds for the weights
    low: float  # asked directly
    high: float  # through Core ML


def expected(size: int) -> list[Expected]:
    """Of a program that reads so many bytes of weights."""
    found = []
    for name, (floor, rate) in CHIPS.items():
        reading = size / rate / 1e6
        found.append(Expected(name, floor, reading, floor + reading, CORE_ML * floor + reading))
    return found


def chip(brand: str) -> Chip | None:
    """By what a Mac calls its chip: `Apple M4 Pro`."""
    words = brand.split()
    return next((of for name, of in CHIPS.items() if name in words), None)
