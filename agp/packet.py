"""The bytes by which one host has another run the blocks that remain: what was agreed, what is asked, what is answered.

A frame is a header of 16 bytes and a body; all numbers are little endian:

    0       magic in the high half, version of this format in the low one
    1       kind in the low half; in the high one which: a bit for each lender in a PREFIX, 1 for STATES that ask for
            logits and for the ANSWER that has them
    2-3     count of positions; in an OPENING, of bytes
    4-7     session, a number that the asking host makes up
    8-11    position of the first token
    12-15   CRC-32 of the twelve bytes before and the body, going on from one that says what it belongs to: in PREFIX
            and STATES that of the terms, in an ANSWER the checksum of its STATES, in an OPENING 0

    OPENING  Terms as JSON, once a session
    PREFIX   of each lender that takes part the keys and then the values, H S K
    STATES   token ids, 4 bytes each, and then as many payloads of the codec
    ANSWER   the likeliest token after each of them, 4 bytes each, and where they were asked for the logits, N V

A sliding lender keeps no more than its window, so a PREFIX may bring keys and values of one lender and not the other.

The checksum is for accidents: it sees any that hits up to 32 bits in a row, and misses one in 4e9 of all others. Who
means harm can make it right; a shared token and TLS (or loopback) keep him out, and what he sends stays within bounds.
"""

import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum
from functools import cached_property
from math import prod
from struct import Struct
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from agp.cache import KV
from agp.models.tensors import NUMPY, finite, shown

MAGIC, VERSION = 0xA0, 1
FIELDS = Struct("<BBHII")
HEADER = FIELDS.size + 4  # bytes, with the checksum
FRAMES, LONGEST = 64, 1 << 26  # of one request, frames and bytes
RAW = "raw"  # the codec whose payloads are the model's own numbers
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
NUMBERS = {mx.uint8: np.uint8, mx.int32: np.int32, mx.float16: np.float16, mx.float32: np.float32}
NUMBERS |= {mx.bfloat16: np.uint16}  # which numpy does not know
DIGEST, NAME, SIZE = '"[0-9a-f]{64}"', '"[A-Za-z0-9_.-]{1,64}"', "[1-9][0-9]{0,8}"
REGIME = '"[A-Za-z0-9_.-]{1,64}( [0-9a-f]{64})?"'
LENDER = rf"\[{NAME},{SIZE},{SIZE}\]"


class Kind(IntEnum):
    OPENING, PREFIX, STATES, ANSWER = range(1, 5)


MOST: dict[int, int] = {Kind.OPENING: 4096, Kind.PREFIX: 4096, Kind.STATES: 64, Kind.ANSWER: 64}  # that count may say


class Refused(ValueError):
    """Bytes that this host does not take."""


class Lender(NamedTuple):
    name: str  # type of the layer whose keys and values the remaining blocks borrow
    heads: int
    width: int  # of a head


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What both hosts must agree on before a number means the same to them; each with its form in an opening."""

    model: str = field(metadata={"form": DIGEST})  # the whole of it
    regime_below: str = field(metadata={"form": REGIME})  # of who asks
    regime_above: str = field(metadata={"form": REGIME})  # of who answers: the same, or larger
    adapter: str | None = field(metadata={"form": f"null|{DIGEST}"})
    codec: str = field(metadata={"form": NAME})
    codec_digest: str | None = field(metadata={"form": f"null|{DIGEST}"})  # of a learned one
    sent: int = field(metadata={"form": f"0|{SIZE}"})  # the block after which states are sent
    width: int = field(metadata={"form": SIZE})  # numbers of a state, those of all streams
    payload: int = field(metadata={"form": SIZE})  # bytes of a state
    dtype: str = field(metadata={"form": "|".join(f'"{name}"' for name in DTYPES)})  # of the model
    lenders: tuple[Lender, ...] = field(metadata={"form": rf"\[{LENDER}(,{LENDER}){{0,3}}\]"})
    vocabulary: int = field(metadata={"form": SIZE})
    context: int = field(metadata={"form": SIZE})

    @cached_property
    def said(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @cached_property
    def mark(self) -> int:
        """Of these terms in every packet: one that was written under others is refused as a damaged one is."""
        return zlib.crc32(self.said.encode())


FORM = r"\{" + ",".join(f'"{f.name}":({f.metadata["form"]})' for f in fields(Terms)) + r"\}"


class Prefix(NamedTuple):
    session: int
    position: int
    shared: Mapping[str, KV]  # 1 H S K


class States(NamedTuple):
    session: int
    position: int
    tokens: mx.array  # N, int32
    payload: np.ndarray  # N B, uint8
    checksum: int = 0  # of the frame that was read, for its answer
    logits: bool = False  # are asked for


class Answer(NamedTuple):
    session: int
    position: int
    to: int  # checksum of the frame that is answered
    tokens: mx.array  # N, int32
    logits: mx.array | None = None  # N V


class Wire(NamedTuple):
    """A way to send states: N W with their tokens, N, to bytes, N B, and back."""

    pack: Callable[[mx.array, mx.array], np.ndarray]
    unpack: Callable[[np.ndarray, mx.array], mx.array]
    bytes: int


class Header(NamedTuple):
    kind: int
    which: int
    count: int
    session: int
    position: int
    checksum: int = 0


class Part(NamedTuple):
    """Of a body."""

    what: str
    dtype: mx.Dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.size


def lending(which: int, terms: Terms) -> list[Lender]:
    return [lender for i, lender in enumerate(terms.lenders) if which >> i & 1]


def parts(head: Header, terms: Terms | None) -> list[Part]:
    """What follows a header; only an opening can be measured without terms."""
    if terms is None:
        return [Part("opening", mx.uint8, (head.count,))]
    real: Any = getattr(mx, terms.dtype)
    if head.kind == Kind.PREFIX:
        shapes = [(name, (1, heads, head.count, width)) for name, heads, width in lending(head.which, terms)]
        return [Part(f"{name} {of}", real, shape) for name, shape in shapes for of in KV._fields]
    tokens = Part("tokens", mx.int32, (head.count,))
    if head.kind == Kind.STATES:
        return [tokens, Part("payload", mx.uint8, (head.count, terms.payload))]
    return [tokens, Part("logits", real, (head.count, terms.vocabulary))][: 1 + head.which]


def limits(head: Header, terms: Terms | None) -> dict[str, tuple[int, int]]:
    """Least and most of what a header may say, by field."""
    most = MOST[head.kind]
    if terms is None:
        return {"which": (0, 0), "count": (1, most), "position": (0, 0)}
    which = (1, (1 << len(terms.lenders)) - 1) if head.kind == Kind.PREFIX else (0, 1)
    return {"which": which, "count": (1, min(most, terms.context)), "position": (0, terms.context - head.count)}


def opening(terms: Terms, session: int) -> bytes:
    if not re.fullmatch(FORM, terms.said):
        raise ValueError(f"these terms are {terms.said}; the form of {FORM} is needed")
    said = np.frombuffer(terms.said.encode(), np.uint8)
    return frame(Header(Kind.OPENING, 0, len(said), session, 0), [said], None, 0)


def read_opening(body: bytes) -> tuple[Terms, int]:
    head, end = header(body, 0, (Kind.OPENING,), None, 0)
    need(end == len(body), end, "what follows the opening", f"{len(body) - end} bytes", "nothing")
    said = body[HEADER:].decode("latin-1")  # which takes any bytes
    form = f"JSON of {', '.join(f.name for f in fields(Terms))}"
    need(re.fullmatch(FORM, said) is not None, HEADER, "the opening", shown(said), form)
    given: Any = json.loads(said)
    given["lenders"] = tuple(Lender(*lender) for lender in given["lenders"])
    return Terms(**given), head.session


def differences(mine: Terms, theirs: Terms) -> list[str]:
    """Why these two hosts cannot work together."""
    pairs = [(f.name.replace("_", " "), getattr(mine, f.name), getattr(theirs, f.name)) for f in fields(Terms)]
    return [f"{name} is {brief(here)} here and {brief(there)} there" for name, here, there in pairs if here != there]


def brief(value: object) -> str:
    if isinstance(value, str):
        value = re.sub("[0-9a-f]{64}", lambda digest: digest[0][:12], value)
    return "none" if value is None else shown(value)


def written(packet: Prefix | States | Answer, terms: Terms) -> bytes:
    """One frame."""
    session, position = packet.session, packet.position
    if isinstance(packet, Prefix):
        which = sum(1 << i for i, lender in enumerate(terms.lenders) if lender.name in packet.shared)
        values: list[Any] = [a for name, _, _ in lending(which, terms) for a in packet.shared[name]]
        assert len(values) == 2 * len(packet.shared) > 0, f"{list(packet.shared)} are not among {terms.lenders}"
        return frame(Header(Kind.PREFIX, which, values[0].shape[2], session, position), values, terms, terms.mark)
    if isinstance(packet, States):
        head = Header(Kind.STATES, int(packet.logits), len(packet.tokens), session, position)
        return frame(head, [packet.tokens, packet.payload], terms, terms.mark)
    values = [packet.tokens] if packet.logits is None else [packet.tokens, packet.logits]
    head = Header(Kind.ANSWER, len(values) - 1, len(packet.tokens), session, position)
    return frame(head, values, terms, packet.to)


def frame(head: Header, values: list[Any], terms: Terms | None, start: int) -> bytes:
    """What is out of bounds here is a bug of this host, not of the other."""
    for name, (low, high) in limits(head, terms).items():
        assert low <= getattr(head, name) <= high, f"{name} of {head} must be {low}..{high}"
    body = b"".join(as_bytes(value, part) for value, part in zip(values, parts(head, terms), strict=True))
    first = FIELDS.pack(MAGIC | VERSION, head.kind | head.which << 4, *head[2:5])
    return first + checksum(first, body, start).to_bytes(4, "little") + body


def as_bytes(value: mx.array | np.ndarray, part: Part) -> bytes:
    value = seen(value) if isinstance(value, mx.array) else value
    known = NUMBERS[part.dtype]
    assert value.shape == part.shape and value.dtype == known, f"{part} is given as {value.dtype} {value.shape}"
    return value.tobytes()


def seen(a: mx.array) -> np.ndarray:
    """The same numbers where they lie."""
    return np.array(a.view(mx.uint16) if a.dtype == mx.bfloat16 else a, copy=False)


def taken(numbers: np.ndarray, dtype: mx.Dtype) -> mx.array:
    """A copy of what was seen so."""
    found = mx.array(numbers)
    return found.view(dtype) if dtype == mx.bfloat16 else found


def checksum(first: bytes | memoryview, body: bytes | memoryview, start: int) -> int:
    return zlib.crc32(body, zlib.crc32(first, start))


def session_of(body: bytes) -> int:
    """Of a request: it says by which terms to read it."""
    return begun(body, 0).session


def frames(body: bytes, terms: Terms) -> list[Prefix | States]:
    """All that one request asks. Sizes and checksums of the whole are looked at before any of it is taken."""
    need(len(body) <= LONGEST, LONGEST, "the request", f"{len(body)} bytes", f"{LONGEST} at most")
    found, at = [], 0
    while at < len(body) or not found:
        need(len(found) < FRAMES, at, "the number of frames", f"above {FRAMES}", f"{FRAMES} at most")
        head, end = header(body, at, (Kind.PREFIX, Kind.STATES), terms, terms.mark)
        found.append((head, at + HEADER))
        need(head.session == found[0][0].session, at + 4, "session", head.session, f"{found[0][0].session} again")
        at = end
    return [asked(head, values(body, at, head, terms), terms) for head, at in found]


def asked(head: Header, values: list[Any], terms: Terms) -> Prefix | States:
    if head.kind == Kind.STATES:
        return States(head.session, head.position, *values, checksum=head.checksum, logits=bool(head.which))
    pairs = zip(lending(head.which, terms), values[::2], values[1::2], strict=True)
    shared = {lender.name: KV(keys, values) for lender, keys, values in pairs}
    return Prefix(head.session, head.position, shared)


def answer(body: bytes, terms: Terms, question: bytes) -> Answer:
    """What was said to this STATES frame and to no other: an older answer that comes again is refused."""
    want, got = begun(question, 0), begun(body, 0)
    assert want.kind == Kind.STATES, f"{want} asks nothing"
    for at, name in ((1, "which"), (2, "count"), (4, "session"), (8, "position")):
        said, due = getattr(got, name), getattr(want, name)
        need(said == due, at, name, said, f"{due}, as asked,")
    head, end = header(body, 0, (Kind.ANSWER,), terms, want.checksum)
    need(end == len(body), end, "what follows the answer", f"{len(body) - end} bytes", "nothing")
    return Answer(head.session, head.position, want.checksum, *values(body, HEADER, head, terms))


def need(fine: bool, at: int, what: str, got: object, wanted: object) -> None:
    if not fine:
        raise Refused(f"byte {at}: {what} is {got}; {wanted} is needed")


def begun(body: bytes, at: int) -> Header:
    """What a header says, true or not."""
    need(len(body) - at >= HEADER, at, "what is left", f"{len(body) - at} bytes", f"a header of {HEADER}")
    first, second, count, session, position = FIELDS.unpack_from(body, at)
    need(first & 0xF0 == MAGIC, at, "the first byte", hex(first), f"{MAGIC | VERSION:#x}, as of all packets,")
    need(first & 0x0F == VERSION, at, "version", first & 0x0F, VERSION)
    told = int.from_bytes(body[at + FIELDS.size : at + HEADER], "little")
    return Header(second & 0x0F, second >> 4, count, session, position, told)


def header(body: bytes, at: int, kinds: tuple[Kind, ...], terms: Terms | None, start: int) -> tuple[Header, int]:
    """Of a frame that is of one of these kinds, whole and undamaged; and where it ends."""
    head = begun(body, at)
    need(head.kind in kinds, at + 1, "kind", head.kind, " or ".join(f"{kind} ({kind.name})" for kind in kinds))
    offsets = {"which": 1, "count": 2, "position": 8}
    for name, (low, high) in limits(head, terms).items():
        need(low <= getattr(head, name) <= high, at + offsets[name], name, getattr(head, name), f"{low}..{high}")
    begin, size = at + HEADER, sum(part.bytes for part in parts(head, terms))
    need(begin + size <= len(body), begin, "the rest", f"{len(body) - begin} bytes", f"a body of {size}")
    view = memoryview(body)
    found = checksum(view[at : at + FIELDS.size], view[begin : begin + size], start)
    due = f"{found:#010x} (it is damaged, or of other terms, or to another question)"
    need(found == head.checksum, at + FIELDS.size, "checksum", f"{head.checksum:#010x}", due)
    return head, begin + size


def values(body: bytes, at: int, head: Header, terms: Terms) -> list[Any]:
    """Of each part of a body."""
    found = []
    for part in parts(head, terms):
        found.append(value(body, at, part, terms))
        at += part.bytes
    return found


def value(body: bytes, at: int, part: Part, terms: Terms) -> mx.array | np.ndarray:
    flat = np.frombuffer(body, np.uint8, part.bytes, at)
    if part.what == "tokens":
        ids = flat.view("<u4")
        i = int(np.argmax(ids >= terms.vocabulary))  # the first beyond, if any is
        need(ids[i] < terms.vocabulary, at + 4 * i, "token", ids[i], f"0..{terms.vocabulary - 1}")
    elif part.what != "payload" or terms.codec == RAW:
        short = DTYPES[terms.dtype]
        need(finite(flat.view(NUMPY[short]), short), at, part.what, "NaN or infinity in part", "all of it finite")
    numbers = flat.view(NUMBERS[part.dtype]).reshape(part.shape)
    return numbers if part.what == "payload" else taken(numbers, part.dtype)


def restored(states: States, terms: Terms, unpack: Callable[[np.ndarray, mx.array], mx.array]) -> mx.array:
    """N W in the model's dtype: a payload that is whole may still stand for no number."""
    found = unpack(states.payload, states.tokens).astype(getattr(mx, terms.dtype))
    assert found.shape == (len(states.tokens), terms.width), f"the codec gave {found.shape}"
    if terms.codec == RAW:  # its numbers have been looked at
        return found
    fine: Any = mx.isfinite(found).all()
    at = HEADER + 4 * len(states.tokens)
    need(fine.item(), at, f"payload by {terms.codec}", "NaN or infinity in part", "all of it finite")
    return found


def raw(width: int, dtype: str) -> Wire:
    """Every bit of every number, so that logits are the same to the bit."""
    real: Any = getattr(mx, dtype)

    def pack(states: mx.array, tokens: mx.array) -> np.ndarray:
        assert states.shape == (len(tokens), width) and states.dtype == real, f"{states.dtype} {states.shape}"
        return np.ascontiguousarray(seen(states)).view(np.uint8)

    def unpack(payload: np.ndarray, tokens: mx.array) -> mx.array:
        return taken(payload.view(NUMBERS[real]), real)

    return Wire(pack, unpack, width * real.size)
