"""The weights of a Core ML package, read from their bytes without coremltools: version 2 of its blob file.

A header of 64 bytes begins with how many blobs there are and the version. Each blob has 64 bytes of its own, with a
mark, a type, its length and where its bytes begin; the next one follows at the next multiple of 64.
"""

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
STEP, VERSION, MARK = 64, 2, 0xDEADBEEF
TYPES = {1: "float16", 2: "float32", 3: "uint8", 4: "int8", 13: "uint6"}


class Blob(NamedTuple):
    type: str
    begin: int  # of its own 64 bytes
    offset: int
    bytes: int
    sha256: str


def blobs(package: Path) -> list[Blob]:
    """All, in their order; one error if the file is not what it says it is."""
    path = package / WEIGHTS
    data = memoryview(path.read_bytes())
    if len(data) < STEP:
        raise ValueError(f"{path} has {len(data)} bytes; it is no file of weights")
    count, version = struct.unpack_from("<II", data)
    if version != VERSION:
        raise ValueError(f"{path} is of version {version}; {VERSION} is the one that is known here")
    found = list(each(path, data))
    if len(found) != count:
        raise ValueError(f"{path} says it holds {count} weights and holds {len(found)}")
    return found


def each(path: Path, data: memoryview) -> Iterator[Blob]:
    at = STEP
    while at + STEP <= len(data):
        mark, kind, size, begin = struct.unpack_from("<IIQQ", data, at)
        if mark != MARK or begin < at + STEP or begin + size > len(data):
            raise ValueError(f"{path}: at byte {at:,} no weight begins, where one should")
        content = hashlib.sha256(data[begin : begin + size]).hexdigest()
        yield Blob(TYPES.get(kind, f"type {kind}"), at, begin, size, content)
        at = -(-(begin + size) // STEP) * STEP
