"""The other host: it runs the blocks above a tap for states that it is sent. Bytes in, bytes out; no server is here.

Of each session it keeps what the lending blocks made of the text so far, and nothing else. A PREFIX takes the place of
all that it had from its position on, so drafts that were taken back are gone; where something is missing it says from
which position on, and is sent that again. A request is a few PREFIX frames and, as the last, perhaps STATES.

Whoever holds the token is believed: an answer is as good as the host that gives it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from agp.beyond import newest, windows
from agp.cache import KV, LayerCache
from agp.models.decoder import Decoder, Stream
from agp.packet import (
    MOST,
    RAW,
    Answer,
    Kind,
    Lender,
    Prefix,
    Refused,
    States,
    Terms,
    Wire,
    brief,
    differences,
    frames,
    raw,
    read_opening,
    restored,
    session_of,
    written,
)
from agp.uplift import above, label, unfit, whole_of

SESSIONS, ROOM = 64, 1 << 30  # at most; bytes of keys and values in all of them
SLACK = MOST[Kind.STATES]  # positions that one question may have


class Unlike(Refused):
    """The hosts differ in what they must agree on."""


class Taken(Refused):
    """Another session has this number."""


class Unopened(Refused):
    """No session has this number (any more)."""


class Missing(Refused):
    """Of what the states are to attend to."""


class Offer(NamedTuple):
    """What a host is ready to do."""

    terms: Terms
    wire: Wire


def terms(
    model: Decoder,
    wire: Wire,
    *,
    upper: Decoder | None = None,
    weights: str,
    adapter: str | None,
    sent: int,
    codec: str = RAW,
    codec_digest: str | None = None,
) -> Terms:
    """Of states after block `sent` of the whole model, that `upper`, or else the model itself, goes on with.

    Digests are of the weights alone: what else the config says is added here.
    """
    config, upper = whole_of(model).config, upper or model
    if wrong := unfit(model, upper, sent):
        raise ValueError("; ".join(wrong))
    stream = model.blocks(model.embed(mx.zeros((1, 1), mx.int32)), stop=model.config.num_producers)
    lenders = {kind: stream.shared[kind].keys for kind in windows(upper.config)}  # shapes are measured
    return Terms(
        model=hashlib.sha256(f"{weights} {config}".encode()).hexdigest(),
        regime_below=label(model),
        regime_above=label(upper),
        adapter=adapter,
        codec=codec,
        codec_digest=codec_digest,
        sent=sent,
        width=stream.hidden.size,
        payload=wire.bytes,
        dtype=str(stream.hidden.dtype).removeprefix("mlx.core."),
        lenders=tuple(Lender(kind, keys.shape[1], keys.shape[3]) for kind, keys in lenders.items()),
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
    )


def plain(model: Decoder) -> Wire:
    """Its states as they are."""
    hidden = model.embed(mx.zeros((1, 1), mx.int32)).hidden
    return raw(hidden.size, str(hidden.dtype).removeprefix("mlx.core."))


class Session:
    def __init__(self, offer: Offer, sizes: dict[str, int | None]):
        self.terms, self.wire = offer
        self.layers = {kind: LayerCache(window, SLACK) for kind, window in sizes.items()}

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers.values())

    def take(self, prefix: Prefix) -> None:
        for kind in prefix.shared:  # before anything is changed
            if self.layers[kind].window is None and prefix.position > self.layers[kind].offset:
                raise missing(self.layers[kind].offset)
        for kind, kv in prefix.shared.items():
            layer, back = self.layers[kind], self.layers[kind].offset - prefix.position
            if back >= 0 and layer.can_trim(back):
                layer.trim(back)
                layer.extend(*kv)
            else:  # a window that begins anew
                layer.put(kv, prefix.position + kv.keys.shape[2])

    def shared(self, position: int, count: int) -> dict[str, KV]:
        """What these positions and no others attend to."""
        found = {}
        for kind, layer in self.layers.items():
            first = 0 if layer.window is None else max(0, position - layer.window + 1)
            if layer.offset < position + count:
                raise missing(layer.offset)
            held = layer.held()
            begin = layer.offset - held.keys.shape[2]
            if begin > first:
                raise missing(first)
            upto = KV(*(a[:, :, : position + count - begin] for a in held))
            found[kind] = newest(upto, layer.window, count - 1)
        return found


def missing(position: int) -> Missing:
    return Missing(f"prefix missing from position {position}")


class Receiver:
    """It is to be asked by one thread at a time."""

    def __init__(self, model: Decoder, offers: Sequence[Offer], *, sessions: int = SESSIONS, room: int = ROOM):
        assert offers, "a host that offers nothing"
        self.model, self.most, self.room = model, sessions, room
        self.offers = {(of.codec, of.sent, of.regime_below): Offer(of, wire) for of, wire in offers}
        self.shape = model.embed(mx.zeros((1, 1), mx.int32)).hidden.shape[2:]
        self.sizes = windows(model.config)
        self.sessions: OrderedDict[int, Session] = OrderedDict()  # who was asked last stands last

    @property
    def nbytes(self) -> int:
        return sum(session.nbytes for session in self.sessions.values())

    def open(self, body: bytes) -> None:
        theirs, number = read_opening(body)
        offer = self.offers.get((theirs.codec, theirs.sent, theirs.regime_below))
        if offer is None:
            known = ", ".join(f"{codec} after block {sent} of {brief(below)}" for codec, sent, below in self.offers)
            asked = f"{theirs.codec} after block {theirs.sent} of {brief(theirs.regime_below)}"
            raise Unlike(f"{asked} is not among what is read here: {known}")
        if wrong := differences(offer.terms, theirs):
            raise Unlike("; ".join(wrong))
        if number in self.sessions:
            raise Taken(f"session {number} is open; take another number")
        self.sessions[number] = Session(offer, self.sizes)
        self.evict(number)

    def finish(self, body: bytes) -> bytes:
        """The answer to the states in it, if there are any."""
        number = session_of(body)
        session = self.sessions.get(number)
        if session is None:
            raise Unopened(f"session {number} is not open")
        asked = frames(body, session.terms)
        if any(isinstance(packet, States) for packet in asked[:-1]):
            raise Refused("states are followed by another frame; one request asks once, at its end")
        self.sessions.move_to_end(number)
        for packet in asked:
            if isinstance(packet, Prefix):
                session.take(packet)
        self.evict(number)
        last = asked[-1]
        return self.answer(session, last) if isinstance(last, States) else b""

    def settle(self) -> None:
        """What was put away last is computed: best when the answer is on its way, for nobody waits for it."""
        if self.sessions:
            newest = next(reversed(self.sessions.values()))
            mx.async_eval([layer.arrays for layer in newest.layers.values()])

    def evict(self, number: int) -> None:
        """Whoever was not asked for longest, until there is room; this one itself if it alone is too large."""
        while len(self.sessions) > self.most or self.nbytes > self.room:
            oldest, _ = self.sessions.popitem(last=False)
            if oldest == number:
                raise Refused(f"session {number} needs more than the {self.room} bytes that there are")

    def answer(self, session: Session, states: States) -> bytes:
        of, count = session.terms, len(states.tokens)
        shared = session.shared(states.position, count)
        hidden = restored(states, of, session.wire.unpack).reshape(1, count, *self.shape)
        stream = Stream(hidden, self.inputs(states.tokens), states.position + count, None, shared)
        logits = self.model.unembed(self.model.blocks(stream, start=above(self.model, of.sent)))[0]
        tokens = mx.argmax(logits, axis=-1).astype(mx.int32)
        said = Answer(states.session, states.position, states.checksum, tokens, logits if states.logits else None)
        return written(said, of)

    def inputs(self, tokens: mx.array) -> mx.array | None:
        """One after another, as they were on the host that asks: rows side by side are rounded in another way."""
        found = [inputs for token in tokens if (inputs := self.model.embed(token[None, None]).inputs) is not None]
        return mx.concatenate(found, axis=1) if found else None
