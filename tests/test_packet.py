"""What one host writes another reads to the bit; what is damaged, foreign, old or out of bounds is refused in a line.

Seen to fail when broken: no checksum, one without header or body, one that goes on from no terms or no question;
no bound on count, position, frames, bytes or tokens, or one too far; NaN let through, in a raw payload alone, or by a
codec; no look at sizes; bytes after an answer or an opening; an opening that only begins well; keys for values; kinds,
lenders and sessions not looked at; a difference or a lender forgotten. Damaged packets alone see nearly half of these.
"""

import json
import random
import timeit
import tracemalloc
import zlib
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from agp import packet
from agp.artifacts import write_results
from agp.cache import KV
from agp.models.decoder import Stream
from agp.packet import Answer, Lender, Prefix, Refused, States, Terms, answer, frames, read_opening, written
from heads.codec import Integers
from tests.toys import text, toy

DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
FAMILIES = {"gemma4": (32,), "gemma3n": (4, 32)}  # shape of a state
SESSION, POSITION = 0xDEADBEEF, 5
FAST, FULL = 3_000, 100_000  # damaged packets


def terms(family="gemma4", dtype="bfloat16", **changes):
    """Of the toys."""
    width = prod(FAMILIES[family])
    lenders = (Lender("sliding_attention", 2, 8), Lender("full_attention", 2, 16 if family == "gemma4" else 8))
    given = {"codec": packet.RAW, "codec_digest": None, "payload": packet.raw(width, dtype).bytes}
    given |= {"model": "a" * 64, "adapter": None, "sent": 3, "width": width, "dtype": dtype, "lenders": lenders}
    given |= {"regime_below": "whole", "regime_above": "whole", "vocabulary": 96, "context": 128}
    return Terms(**given | changes)


def learned(**changes):
    """Of an odd size, so that later frames are not aligned."""
    return terms(**{"codec": "learned_4x", "codec_digest": "c" * 64, "payload": 7} | changes)


EVERY = [make(family=f, dtype=d) for make in (terms, learned) for f in FAMILIES for d in DTYPES]
EACH = pytest.mark.parametrize("of", EVERY)
EACH_RAW = pytest.mark.parametrize("of", EVERY[:6])


def reals(shape, of, seed=0):
    """Signed zeros and subnormals too."""
    found = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    found.flat[:3] = [-0.0, 0.0, 1e-7 if of.dtype == "float16" else 1e-40][: found.size]
    return mx.array(found).astype(getattr(mx, of.dtype))


def prefix(of, count=3, names=("sliding_attention", "full_attention"), position=0):
    shapes = {lender.name: (1, lender.heads, count, lender.width) for lender in of.lenders if lender.name in names}
    return Prefix(SESSION, position, {name: KV(reals(s, of, 1), reals(s, of, 2)) for name, s in shapes.items()})


def states(of, count=2, position=POSITION, session=SESSION, with_logits=True):
    tokens = mx.arange(count, dtype=mx.int32) + 1
    payload = np.random.default_rng(4).integers(0, 256, (count, of.payload), np.uint8)
    if of.codec == packet.RAW:
        payload = packet.raw(of.width, of.dtype).pack(reals((count, of.width), of), tokens)
    return States(session, position, tokens, payload, logits=with_logits)


def reply(of, question):
    (asked,) = frames(question, of)
    logits = reals((len(asked.tokens), of.vocabulary), of, 5) if asked.logits else None
    return Answer(asked.session, asked.position, asked.checksum, asked.tokens + 1, logits)


def refused(named, read, *given):
    with pytest.raises(Refused) as error:
        read(*given)
    said = str(error.value)
    assert named in said and said.startswith("byte ") and len(said) < 400 and said.isascii() and said.isprintable()


def summed(body, start):
    """One frame with its checksum made right."""
    return body[:12] + zlib.crc32(body[16:], zlib.crc32(body[:12], start)).to_bytes(4, "little") + body[16:]


sum_of = lambda body: int.from_bytes(body[12:16], "little")
put = lambda body, at, new: body[:at] + new + body[at + len(new) :]
flipped = lambda body, bit: put(body, bit // 8, bytes([body[bit // 8] ^ 1 << bit % 8]))


def bits(value):
    """All that a packet holds, to compare."""
    if isinstance(value, dict):
        return {name: bits(v) for name, v in value.items()}
    if isinstance(value, tuple):
        return [type(value), *map(bits, value)]
    if isinstance(value, mx.array):
        return value.dtype, value.shape, np.array(value.view(mx.uint8)).tobytes()
    return (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


@EACH
def test_what_is_written_is_read(of):
    asked = [prefix(of), prefix(of, 2, ["full_attention"], 7), states(of, 1), prefix(of, 1), states(of, 64)]
    bodies = [written(p, of) for p in asked]
    told = [p._replace(checksum=sum_of(b)) if isinstance(p, States) else p for p, b in zip(asked, bodies, strict=True)]
    assert list(map(bits, frames(b"".join(bodies), of))) == list(map(bits, told))
    for with_logits in (True, False):
        question = written(states(of, 3, with_logits=with_logits), of)
        said = reply(of, question)
        assert bits(answer(written(said, of), of, question)) == bits(said) and (said.logits is None) != with_logits
    assert read_opening(packet.opening(of, SESSION)) == (of, SESSION) and packet.differences(of, of) == []


def test_the_bytes_of_a_frame_are_these():
    """Other bytes are another version."""
    told = States(0x01020304, 5, mx.array([1, 2], mx.int32), np.arange(14, dtype=np.uint8).reshape(2, 7))
    body, asking = (written(told._replace(logits=logits), learned()) for logits in (False, True))
    assert body[:12].hex() == "a103" + "0200" + "04030201" + "05000000" and asking[:4].hex() == "a113" + "0200"
    assert body[16:].hex() == "01000000" + "02000000" + bytes(range(14)).hex()
    assert sum_of(body) == zlib.crc32(body[:12] + body[16:], learned().mark) and packet.session_of(body) == 0x01020304
    kv = mx.arange(192, dtype=mx.uint16).view(mx.bfloat16).reshape(2, 1, 2, 3, 16)
    body = written(Prefix(1, 0, {"full_attention": KV(kv[0], kv[1])}), learned())
    assert body[:4].hex() == "a122" + "0300" and body[16:] == np.arange(192, dtype="<u2").tobytes()


@EACH_RAW
def test_raw_is_bit_for_bit_even_where_states_are_no_numbers(of):
    wire, whole = packet.raw(of.width, of.dtype), np.random.default_rng(0).integers(0, 256, (9, of.payload), np.uint8)
    tokens = mx.zeros(9, mx.int32)
    assert np.array_equal(wire.pack(wire.unpack(whole, tokens), tokens), whole) and wire.bytes == of.payload


def received(model, of, body, wire, shape):
    """What another host makes of bytes alone."""
    first, second, sent = frames(body, of)
    assert isinstance(first, Prefix) and isinstance(second, Prefix) and isinstance(sent, States)
    hidden = packet.restored(sent, of, wire.unpack).reshape(1, len(sent.tokens), *shape)
    full = zip(first.shared["full_attention"], second.shared["full_attention"], strict=True)
    shared = {**second.shared, "full_attention": KV(*(mx.concatenate(pair, axis=2) for pair in full))}
    return Stream(hidden, model.embed(sent.tokens[None]).inputs, sent.position + len(sent.tokens), None, shared)


@EACH_RAW
def test_another_host_goes_on_to_the_same_logits_to_the_bit(of):
    family = "gemma4" if of.width == 32 else "gemma3n"
    model, tokens = toy(family), text(rows=1)
    model.set_dtype(getattr(mx, of.dtype))
    cache, stop, wire = model.make_cache(), model.config.num_producers, packet.raw(of.width, of.dtype)
    model(tokens[:, :-1], cache=cache)
    here = model.blocks(model.embed(tokens[:, -1:], end=17), stop=stop, cache=cache)
    payload = wire.pack(here.hidden.reshape(1, -1), tokens[0, -1:])
    long, window = here.shared["full_attention"], here.shared["sliding_attention"]
    earlier = {"full_attention": KV(*(a[:, :, :11] for a in long))}  # of which the window knows nothing any more
    later = {"sliding_attention": window, "full_attention": KV(*(a[:, :, 11:] for a in long))}
    asked = [Prefix(SESSION, 0, earlier), Prefix(SESSION, 11, later), States(SESSION, 16, tokens[0, -1:], payload)]
    there = received(model, of, b"".join(written(p, of) for p in asked), wire, FAMILIES[family])
    logits = [model.unembed(model.blocks(stream, start=stop)) for stream in (here, there)]
    assert bits(logits[0]) == bits(logits[1])


def test_a_learned_codec_is_two_functions_and_may_not_make_what_is_no_number():
    of, codec, none = learned(width=12, payload=14), Integers(12, 8, 12), mx.zeros((2, 1))
    sent = States(SESSION, 0, mx.array([1, 2], mx.int32), codec.pack(reals((2, 12), of), none))
    (read,) = frames(written(sent, of), of)
    back = packet.restored(read, of, codec.unpack)
    assert bits(back) == bits(codec.unpack(sent.payload, none).astype(mx.bfloat16))
    narrow = replace(of, dtype="float16")
    refused("NaN or infinity", packet.restored, read, narrow, lambda payload, tokens: mx.full((2, 12), 1e6))
    sent.payload[1] = 255  # a scale that is NaN
    (read,) = frames(written(sent, of), of)
    refused("byte 24: payload by learned_4x is NaN or infinity", packet.restored, read, of, codec.unpack)


CHANGES = {"model": "b" * 64, "adapter": "b" * 64, "codec": "learned_8x", "codec_digest": "d" * 64, "sent": 4}
CHANGES |= {"width": 48, "payload": 96, "dtype": "float16", "vocabulary": 97, "context": 256}
CHANGES |= {"lenders": (Lender("full_attention", 1, 16),), "regime_below": "e2.69b " + "e" * 64, "regime_above": "b"}


def test_every_difference_is_told_in_a_line():
    mine = terms()
    said = {name: packet.differences(mine, replace(mine, **{name: value})) for name, value in CHANGES.items()}
    assert all(len(lines) == 1 and lines[0].startswith(f"{n.replace('_', ' ')} is ") for n, lines in said.items())
    assert said["adapter"] == ["adapter is none here and 'bbbbbbbbbbbb' there"]
    assert said["sent"] == ["sent is 3 here and 4 there"]
    other = replace(mine, **CHANGES)
    assert len(packet.differences(mine, other)) == len(Terms.__dataclass_fields__)
    assert read_opening(packet.opening(other, 1)) == (other, 1)
    for name in ("model", "adapter", "codec", "sent"):  # and packets need no opening to be told apart
        refused("or of other terms", frames, written(prefix(mine), mine), replace(mine, **{name: CHANGES[name]}))


as_json = lambda said, **changes: json.dumps(json.loads(said) | changes, separators=(",", ":")).encode()
OPENINGS = {
    "not UTF-8": lambda said: said[:-1] + b"\xff",
    "an escape for the terminal": lambda said: said.replace(b"raw", b"\x1b[2J"),
    "deep": lambda said: b"[" * 4000,
    "spaces": lambda said: said.replace(b",", b", "),
    "a name twice": lambda said: said[:-1] + b',"width":1}',
    "a name more": lambda said: as_json(said, more=1),
    "a name less": lambda said: said.replace(b'"context"', b'"contexts"'),
    "a digest too short": lambda said: as_json(said, model="a" * 63),
    "no model": lambda said: as_json(said, model=None),
    "true for a number": lambda said: as_json(said, sent=True),
    "a number with a point": lambda said: as_json(said, width=32.0),
    "NaN": lambda said: as_json(said, width=float("nan")),
    "a width of zero": lambda said: as_json(said, width=0),
    "a context beyond reason": lambda said: as_json(said, context=10**400),
    "an unknown dtype": lambda said: as_json(said, dtype="float64"),
    "five lenders": lambda said: as_json(said, lenders=[["a", 1, 1]] * 5),
    "a lender that is a name": lambda said: as_json(said, lenders=["abc"]),
    "a line more": lambda said: said + b"\n",
}


@pytest.mark.parametrize("change", OPENINGS.values(), ids=OPENINGS)
def test_an_opening_in_another_form_is_refused(change):
    body = packet.opening(terms(), SESSION)
    said = change(body[16:])
    spoilt = summed(put(body[:16], 2, len(said).to_bytes(2, "little")) + said, 0)
    refused("byte 16: the opening is", read_opening, spoilt)


def test_an_opening_is_one_whole_frame():
    of = terms()
    body = packet.opening(of, SESSION)
    refused("what follows the opening is 1 bytes; nothing", read_opening, body + b"x")
    refused("byte 8: position is 1; 0..0", read_opening, summed(put(body, 8, b"\1"), 0))
    refused("byte 2: count is 4097; 1..4096", read_opening, summed(put(body, 2, b"\x01\x10"), 0))
    refused("byte 1: kind is 3; 1 (OPENING)", read_opening, written(states(of), of))
    refused("byte 1: kind is 1; 2 (PREFIX) or 3 (STATES)", frames, body, of)
    with pytest.raises(ValueError, match="these terms are .*context.*is needed"):
        packet.opening(terms(context=10**10), 1)


def test_another_version_is_told_from_what_is_no_packet():
    of = terms()
    question = written(states(of), of)
    said, hello = written(reply(of, question), of), packet.opening(of, 1)
    readers = [(frames, question, of), (answer, said, of, question), (read_opening, hello), (packet.session_of, hello)]
    for read, body, *more in readers:
        refused("byte 0: version is 2; 1 is needed", read, b"\xa2" + body[1:], *more)
        refused("byte 0: the first byte is 0xb1; 0xa1", read, b"\xb1" + body[1:], *more)
        refused("byte 0: the first byte is 0x47", read, b"GET / HTTP/1.1\r\n\r\n", *more)
        refused("byte 0: what is left is 0 bytes; a header of 16", read, b"", *more)
        refused("byte 0: what is left is 15 bytes", read, body[:15], *more)


FIELDS = {  # where something else stands, and what is said of it
    "kind 15": (1, b"\x0f", "byte 1: kind is 15; 2 (PREFIX) or 3 (STATES) is needed"),
    "states that ask for more": (1, b"\x23", "byte 1: which is 2; 0..1 is needed"),
    "keys of nobody": (1, b"\x02", "byte 1: which is 0; 1..3 is needed"),
    "keys of a third": (1, b"\x42", "byte 1: which is 4; 1..3 is needed"),
    "no positions": (2, b"\x00\x00", "byte 2: count is 0; 1..64 is needed"),
    "65 positions": (2, b"\x41\x00", "byte 2: count is 65; 1..64 is needed"),
    "one more": (2, b"\x03\x00", "byte 16: the rest is 136 bytes; a body of 204 is needed"),
    "a position beyond": (8, b"\xff\xff\xff\xff", "byte 8: position is 4294967295; 0..126"),
}


@pytest.mark.parametrize("at, new, said", FIELDS.values(), ids=FIELDS)
def test_every_field_of_a_header_is_refused_by_name(at, new, said):
    of = terms()
    refused(said, frames, summed(put(written(states(of), of), at, new), of.mark), of)


@EACH
def test_no_flipped_bit_goes_by(of):
    whole = written(prefix(of, 1, ["sliding_attention"]), of) + written(states(of, 1), of)
    for bit in range(0, 8 * len(whole), 1 if of.payload == 7 else 7):
        refused("checksum" if 4 <= bit // 8 < 8 else "", frames, flipped(whole, bit), of)  # a session has no bounds


@pytest.mark.parametrize("of", [terms(), learned()])
def test_truncated_extended_and_swapped_frames(of):
    first, second = written(prefix(of), of), written(states(of), of)
    whole = first + second
    for size in set(range(len(whole))) - {len(first)}:
        refused("what is left" if size < 16 else "", frames, whole[:size], of)
    refused(f"byte {len(whole)}: what is left is 1 bytes", frames, whole + b"\0", of)
    refused(f"byte {len(whole)}: the first byte is 0x0", frames, whole + bytes(16), of)
    refused(f"byte {2 * len(whole) - len(second) + 16}: the rest is", frames, whole + whole[:-1], of)
    refused("", frames, first[: len(first) // 2] + second, of)
    assert [type(p) for p in frames(second + whole, of)] == [States, Prefix, States]
    other = written(states(of, session=7), of)
    refused(f"byte {len(first) + 4}: session is 7; {SESSION} again is needed", frames, first + other, of)


def test_a_request_is_measured_before_any_number_of_it_is_taken(monkeypatch):
    of = terms()
    body = written(states(of, 1), of)
    assert len(frames(body * packet.FRAMES, of)) == packet.FRAMES
    monkeypatch.setattr(packet, "value", None)
    refused(f"byte {64 * len(body)}: the number of frames is above 64", frames, body * (packet.FRAMES + 1), of)
    refused("the rest", frames, body + body[:-1], of)
    refused("checksum", frames, body + body[:-1] + b"?", of)


def test_what_claims_much_costs_nothing():
    of = terms(context=1 << 29, lenders=(Lender("full_attention", 8, 512),))
    head, long = packet.FIELDS.pack(0xA1, 0x12, 4096, 1, 0) + bytes(4), bytes(packet.LONGEST + 1)
    tracemalloc.start()
    refused("the rest is 100 bytes; a body of 67108864", frames, head + bytes(100), of)
    refused(f"the request is {packet.LONGEST + 1} bytes", frames, long, of)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("token", [96, 2**31 - 1, 2**31, 2**32 - 1])
def test_tokens_beyond_the_vocabulary_are_refused(token):
    of, new = terms(), token.to_bytes(4, "little")
    question = written(states(of, 3), of)
    said = summed(put(written(reply(of, question), of), 24, new), sum_of(question))
    refused(f"byte 20: token is {token}; 0..95 is needed", frames, summed(put(question, 20, new), of.mark), of)
    refused(f"byte 24: token is {token}; 0..95 is needed", answer, said, of, question)


@pytest.mark.parametrize("sign", [0, 0x80])
@EACH_RAW
def test_what_is_no_number_is_refused_wherever_it_stands(of, sign):
    size = DTYPES[of.dtype]
    top = {"float32": b"\x80\x7f", "float16": b"\x00\x7c", "bfloat16": b"\x80\x7f"}[of.dtype]  # infinity; NaN below
    new = bytes(size - 2) + top[:1] + bytes([top[1] | sign])
    question, body = written(states(of), of), written(prefix(of), of)
    said = written(reply(of, question), of)
    for odd in (new, bytes([new[0] | 1]) + new[1:]):
        for at, name in ((16, "sliding_attention keys"), (16 + 48 * size, "sliding_attention values")):
            refused(f"byte {at}: {name} is NaN or infinity in part", frames, summed(put(body, at, odd), of.mark), of)
        refused("full_attention values is NaN", frames, summed(body[:-size] + odd, of.mark), of)
        refused("byte 24: payload is NaN", frames, summed(put(question, 24, odd), of.mark), of)
        refused("byte 24: logits is NaN", answer, summed(said[:-size] + odd, sum_of(question)), of, question)


def test_an_older_answer_is_known_for_what_it_is():
    of = terms()
    question = written(states(of), of)
    said = written(reply(of, question), of)
    refused("what follows the answer is 1 bytes; nothing is needed", answer, said + b"x", of, question)
    refused("byte 1: kind is 3; 4 (ANSWER)", answer, question, of, question)
    others = {
        "byte 4: session is 3735928559; 8, as asked, is needed": states(of, session=8),
        "byte 8: position is 5; 6, as asked, is needed": states(of, position=6),
        "byte 2: count is 2; 3, as asked, is needed": states(of, 3),
        "byte 1: which is 1; 0, as asked, is needed": states(of, with_logits=False),
        "byte 12: checksum is": states(of)._replace(tokens=mx.array([1, 5], mx.int32)),  # the text was another
    }
    for named, other in others.items():
        refused(named, answer, said, of, written(other, of))


def test_what_this_host_would_send_out_of_bounds_is_its_own_bug():
    of = terms()
    sent, keys = states(of), prefix(of).shared["full_attention"]
    shared = [{}, {"full_attention": keys, "linear_attention": keys}, {"sliding_attention": keys}]
    shared += [{"full_attention": KV(*(a.swapaxes(1, 2) for a in keys))}]
    shared += [{"full_attention": KV(*(a.astype(mx.float32) for a in keys))}]
    wrong = [
        *(Prefix(1, 0, held) for held in shared),
        states(of, 65),
        states(of, 1, position=128),
        states(of, 1, position=-1),
    ]
    wrong += [sent._replace(payload=sent.payload[:, 1:]), sent._replace(tokens=mx.array([1.0, 2.0]))]
    wrong += [Answer(1, 0, 0, mx.array([1], mx.int32), mx.zeros((1, 95), mx.bfloat16))]
    for odd in wrong:
        with pytest.raises(AssertionError):
            written(odd, of)


class Case(NamedTuple):
    """A packet to be damaged, and who reads it."""

    of: Terms
    read: Any
    more: tuple[Any, ...]
    body: bytes
    whole: frozenset[bytes]  # frames that somebody wrote
    start: int  # what their checksums go on from


def cases(of):
    parts = [written(p, of) for p in (prefix(of, 2), prefix(of, 1, ["full_attention"], 2), states(of))]
    pairs = [(q, written(reply(of, q), of)) for q in (parts[2], written(states(of, with_logits=False), of))]
    hello = packet.opening(of, SESSION)
    asking = [Case(of, frames, (of,), b"".join(parts[i:]), frozenset(parts), of.mark) for i in range(3)]
    saying = [Case(of, answer, (of, asked), said, frozenset([said]), sum_of(asked)) for asked, said in pairs]
    return [*asking, *saying, Case(of, read_opening, (), hello, frozenset([hello]), 0)]


def damaged(rng, body, other):
    """Once, in one of many ways."""
    a, b = sorted(rng.randrange(len(body)) for _ in range(2))
    c, some = rng.randrange(len(other)), rng.randbytes(rng.choice((1, 1, 2, 4, 16, 40)))
    return rng.choice(
        [
            lambda: flipped(body, 8 * a + rng.randrange(8)),
            lambda: put(body, rng.randrange(16), some[:4]),  # headers are short and matter most
            lambda: put(put(body, a, body[b : b + 1]), b, body[a : a + 1]),
            lambda: body[:b],
            lambda: body[:a] + some + body[a:],
            lambda: body[:a] + body[b:],
            lambda: body[:a] + other[c:],
            lambda: body + other,
            lambda: body[:b] + body[a:b] * rng.randrange(1, 4) + body[b:],
            lambda: put(body, a, some)[: len(body)],
        ]
    )()


def split(body, of):
    """At the ends of frames as their headers have them, reckoned anew."""
    found = []
    while len(body) >= 16:
        kind, which, count = body[1] & 15, body[1] >> 4, int.from_bytes(body[2:4], "little")
        lent = sum(2 * x.heads * x.width for i, x in enumerate(of.lenders) if which >> i & 1)
        item, logits = DTYPES[of.dtype], of.vocabulary * (which & 1)
        sizes = {1: count, 2: count * lent * item, 3: count * (4 + of.payload), 4: count * (4 + logits * item)}
        size = 16 + sizes.get(kind, len(body))
        found, body = [*found, body[:size]], body[size:]
    return [*found, body] if body else found


def fault(got, body, case):
    """Why this should have been refused: all that was taken is looked at once more, by other means."""
    of = case.of
    if case.read is read_opening:
        return None if packet.opening(*got) == body else "an opening of another form"
    got = [got] if case.read is answer else got
    if b"".join(written(p, of) for p in got) != body or not 0 < len(got) <= 64 or len({p.session for p in got}) > 1:
        return "other bytes, too many frames or two sessions"
    for p in got:
        held = [a for kv in p.shared.values() for a in kv] if isinstance(p, Prefix) else []
        count, most = (held[0].shape[2], 4096) if held else (len(p.tokens), 64)
        if not 0 < count <= most or not 0 <= p.position <= of.context - count:
            return "count or position"
        if not held and not all(0 <= token < of.vocabulary for token in p.tokens.tolist()):
            return "tokens"
        held += [p.logits] if isinstance(p, Answer) and p.logits is not None else []
        held += [mx.array(p.payload).view(getattr(mx, of.dtype))] if isinstance(p, States) and of.codec == "raw" else []
        if not all(np.isfinite(np.array(a.astype(mx.float32))).all() for a in held):
            return "NaN or infinity"
    return None


def fuzzed(count, seed):
    """How many damaged packets were taken, by whether their checksums were made right, and the faults of those."""
    rng, pools, taken, wrong = random.Random(seed), [cases(of) for of in EVERY], [0, 0], []
    for i in range(count):
        pool, mend = rng.choice(pools), i % 2
        case, other = rng.choice(pool), rng.choice(rng.choice([pool, pool, rng.choice(pools)])).body
        body = case.body
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            body = damaged(rng, body, other) or b"\0"
        if mend:  # as one who means harm would
            body = b"".join(summed(part, case.start) if len(part) >= 16 else part for part in split(body, case.of))
        try:
            got = case.read(body, *case.more)
        except Refused as e:
            assert len(str(e)) < 400 and str(e).isascii() and str(e).isprintable(), str(e)
            continue
        taken[mend] += 1
        if not mend and not case.whole.issuperset(split(body, case.of)):
            wrong.append(("nobody wrote it", body.hex()))
        if why := fault(got, body, case):
            wrong.append((why, body.hex()))
    return taken, wrong


def test_of_3_000_damaged_packets_none_is_taken_that_is_not_valid():
    (_, mended), wrong = fuzzed(FAST, 0)
    assert wrong == [] and mended > FAST / 20, "some are valid again, or this proves nothing"


@pytest.mark.prove
def test_of_100_000_damaged_packets_none_is_taken_that_is_not_valid():
    tracemalloc.start()
    before = mx.get_active_memory()  # of tests before this one
    mx.reset_peak_memory()
    (as_written, mended), wrong = fuzzed(FULL, 0)
    peak = tracemalloc.get_traced_memory()[1] + max(0, mx.get_peak_memory() - before)
    tracemalloc.stop()
    figure = {"value": len(wrong), "goal": "<= 0", "command": "pytest -m prove tests/test_packet.py"}
    body = {"packets": FULL, "seeds": [0], "valid": {"as damaged": as_written, "with checksums made right": mended}}
    write_results("packet-fuzz", {"fuzz.accepted_invalid": figure}, **body, bytes_at_peak=peak)
    assert wrong == [] and peak < 8e6


def test_a_state_of_e2b_is_written_and_read_in_no_time():
    of = terms(width=1536, payload=3072, vocabulary=262_144, context=32_768)
    sent = states(of, 1)
    assert min(timeit.repeat(lambda: frames(written(sent, of), of), number=1, repeat=50)) < 2e-3
