"""What a safetensors file says it holds, checked against the file's own size before any number of it is read."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

LONGEST_HEADER = 25_000_000  # bytes; E4B's is well below one million, and a reader needs many times as much memory
BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "C64": 8}
BYTES |= {"F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F32", "F16", "BF16")
NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U32": np.uint32, "I32": np.int32, "BOOL": np.bool_}
SHOWN = 20  # names of a kind that an error spells out
LONGEST_NAME = 100  # characters of a name that an error shows


@dataclass(frozen=True)
class Tensor:
    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)} in {self.file.name}"

    def map(self) -> np.ndarray:
        """The numbers where they lie on disk; bfloat16, which numpy lacks, as its 16 bits."""
        return np.memmap(self.file, NUMPY[self.dtype], "r", offset=self.begin, shape=self.shape)


def finite(numbers: np.ndarray, dtype: str) -> bool:
    """No NaN and no infinity; a piece at a time, so that nothing of the tensor's size is made."""
    flat, step = numbers.reshape(-1), 1 << 18
    for i in range(0, flat.size, step):
        piece = flat[i : i + step]
        if not (np.all((piece & 0x7F80) != 0x7F80) if dtype == "BF16" else np.all(np.isfinite(piece))):
            return False
    return True


def some(names: Iterable[str], most: int = LONGEST_NAME, between: str = ", ") -> str:
    """All names, or the first few and how many more."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(clean(name, most) for name in names[:SHOWN]) + more


def clean(text: str, most: int = LONGEST_NAME) -> str:
    """Short, and nothing that a terminal would obey: what a file says may be meant for it."""
    text = text if len(text) <= most else f"{text[:most]}..."
    return re.sub(r"[^ -~]", lambda odd: ascii(odd[0])[1:-1], text)


def shown(value: object) -> str:
    return clean(ascii(value))


def read_header(file: Path) -> tuple[list[Tensor], list[str]]:
    """Every tensor a file promises, and everything wrong with the promise."""
    size = file.stat().st_size
    with file.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            return [], [f"{file.name} has {size} bytes and no room for its header: truncated, or no safetensors file"]
        text = f.read(length)
    try:
        pairs = json.loads(text.decode("utf-8"), object_pairs_hook=list, parse_constant=refuse)
    except (ValueError, RecursionError):
        return [], [f"{file.name} has a header that is not JSON: damaged, or no safetensors file"]
    start, tensors, odd = 8 + length, [], []
    an_object = text.startswith(b"{") and well_paired(pairs)  # pairs alone do not tell {} from []
    for name, entry in pairs if an_object else [("the whole header", None)]:
        if name == "__metadata__":
            fine = entry is None or well_paired(entry) and all(isinstance(v, str) for _, v in entry)
            odd += [] if fine else [name]  # None is what MLX writes for nothing
        elif tensor := understand(name, entry, file, start):
            tensors.append(tensor)
        else:
            odd.append(name)
    wrong = [f"{file.name} describes these in a way that makes no sense: {some(odd)}"] if odd else []
    return tensors, wrong + layout_faults(file, tensors, start, size, whole=not odd)


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def well_paired(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, tuple) and len(v) == 2 for v in value)


def understand(name: str, entry: Any, file: Path, start: int) -> Tensor | None:
    """One entry of a header, or None where dtype, shape and offsets do not fit each other."""
    if not well_paired(entry):
        return None
    facts: dict[str, Any] = dict(entry)
    dtype, shape, offsets = facts.get("dtype"), facts.get("shape", ""), facts.get("data_offsets", "")
    if (
        not isinstance(dtype, str)
        or dtype not in BYTES
        or not (whole_numbers(shape) and whole_numbers(offsets))
        or len(offsets) != 2
    ):
        return None
    if offsets[1] - offsets[0] != prod(shape) * BYTES[dtype]:
        return None
    return Tensor(name, file, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def layout_faults(file: Path, tensors: list[Tensor], start: int, size: int, whole: bool) -> list[str]:
    """Tensors beyond the end of the file, named twice, overlapping, or with something hidden between them."""
    wrong, seen, at = [], set(), start
    if beyond := [t.name for t in tensors if t.end > size]:
        wrong.append(f"{file.name} is truncated at {size} bytes; cut off: {some(beyond)}. Fetch the file again")
    if twice := [t.name for t in tensors if t.name in seen or seen.add(t.name)]:
        wrong.append(f"{file.name} names twice: {some(twice)}")
    for t in sorted(tensors, key=lambda t: (t.begin, t.end)):
        if whole and t.begin != at:
            wrong.append(f"{file.name}: {clean(t.name)} starts at byte {t.begin}, where {at} was due")
            break
        at = t.end
    else:
        if whole and size > at:
            wrong.append(f"{file.name} has {size - at} bytes after its last tensor")
    return wrong
