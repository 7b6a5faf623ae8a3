"""The receiver's answers are those of the host that asks, to the bit, whatever was taken back or forgotten in between.

Seen to fail when broken: what a PREFIX takes the place of kept, a gap let through, or half of a refused PREFIX taken;
a window one short or not cut to size, later positions seen, per-layer inputs made side by side, one block too few; the
order of who was asked last, a number given twice, no look at terms, config or room, states in the middle; and by the
host that asks: nothing taken back, a session used again after its answer was lost or the peer forgot it, pieces not
remembered, no second try, drafts that part ways sent as if they stood in a row.
"""

import copy
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from agp import peer
from agp.beyond import within
from agp.cache import KV
from agp.generate import make_sampler
from agp.packet import Prefix, Refused, States, Terms, Wire, opening, written
from agp.peer import Breaker, Remote
from agp.receiver import Missing, Offer, Receiver, Taken, Unlike, Unopened, plain, terms
from heads.codec import Integers
from tests.peers import PROMPTS, Texts, Timed, alone, away, joined, near, offer, receiver, toy

BOTH = pytest.mark.parametrize("family", ["gemma4", "gemma3n"])


def at_the_tap(texts, tokens):
    """One after another, and then side by side."""
    return joined([texts.run(np.array([[token]])) for token in tokens], texts.model.config), mx.array([tokens])


def bits(a):
    return a.dtype, a.shape, np.array(a.view(mx.uint8)).tobytes()


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_raw_states_give_the_logits_of_this_host_to_the_bit(family, dtype):
    """1 to 64 positions, some of them taken back; a window of 6, so that its edge is passed again and again."""
    model = toy(family, dtype)
    given = offer(model)
    beyond = near_of(model, given).beyond()
    texts, rng = Texts(model, PROMPTS[:1]), np.random.default_rng(0)
    for count, kept in ((1, 1), (5, 2), (64, 40), (3, 0), (1, 1), (64, 64), (2, 1), (5, 5)):
        stream, ids = at_the_tap(texts, rng.integers(1, 96, count).tolist())
        here = model.unembed(model.blocks(stream, start=given.terms.sent + 1))
        there = beyond(stream, ids, [0], logits=True)
        assert there is not None and bits(there.logits) == bits(here)
        assert np.array_equal(there.tokens, np.array(mx.argmax(here, axis=-1)))
        texts.forget([kept], count)


def near_of(model, given):
    made = near(Receiver(model, [given]))
    made.terms, made.wire, made.config = given.terms, given.wire, model.config
    return made


@BOTH
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_is_that_of_this_host_alone(family, rows, temperature):
    model, sampler = toy(family), make_sampler(temperature, 0.9, seed=5)
    made = near(receiver(family), family)
    beyond = Timed(made.beyond(rows))
    found = away(model, beyond, PROMPTS[:rows], 14, sampler)
    assert found == [alone(model, prompt, 14, sampler) for prompt in PROMPTS[:rows]]
    assert all(beyond.answered) and made.counts.answered == len(beyond.answered)
    assert rows > 1 or len(beyond.answered) < 14, "some drafts are right"


def test_rows_may_end_and_others_may_join():
    model, made = toy("gemma4"), near(receiver())
    beyond = made.beyond(2)
    first, second = beyond.sessions
    beyond.keep([1])
    beyond.join(1)
    assert beyond.sessions[0] is second and len(beyond.sessions) == 2 and first is not second
    streams = [at_the_tap(Texts(model, [prompt]), [7]) for prompt in PROMPTS[:2]]
    for row, (stream, ids) in enumerate(streams):
        said = beyond(stream, ids, [row], logits=True)
        here = model.unembed(model.blocks(stream, start=made.terms.sent + 1))
        assert said is not None and bits(said.logits) == bits(here)


@BOTH
def test_rows_may_have_holes_among_their_newest_places(family):
    model, made = toy(family), near(receiver(family), family)
    texts, beyond = Texts(model, PROMPTS), made.beyond(3)
    for there in ([1, 0, 1], [1, 1, 0], [1, 1, 1]):
        first = texts.run(np.array([[5], [6], [7]]))
        where = np.where(there, (texts.where >= 0).sum(1), -1)[:, None]
        stream = joined([first, texts.run(np.array([[8], [9], [10]]), where)], model.config)
        said = beyond(stream, mx.array([[5, 8], [6, 9], [7, 10]]), range(3), logits=True)
        here = model.unembed(model.blocks(stream, start=texts.stop))
        kept = np.array([[True, bool(t)] for t in there])
        assert said is not None and (np.array(mx.argmax(here, axis=-1)) == said.tokens)[kept].all()
        assert (
            np.allclose(np.array(said.logits)[kept], np.array(here)[kept], atol=1e-4) and not said.tokens[~kept].any()
        )


def test_what_stands_in_no_order_is_not_sent():
    """Of drafts that part ways two have the same position."""
    model, made = toy("gemma4"), near(receiver())
    texts = Texts(model, PROMPTS[:2])
    where = (texts.where >= 0).sum(1)[:, None]
    streams = [texts.run(np.array([[5], [6]]), where), texts.run(np.array([[7], [8]]), where)]
    said = made.beyond(2)(joined(streams, model.config), mx.array([[5, 7], [6, 8]]), range(2), logits=False)
    assert said is None and made.counts.calls == 0


def test_states_by_a_codec_are_what_it_makes_of_them():
    model = toy("gemma4")
    codec = Integers(32, 8, 32)
    wire = Wire(codec.pack, codec.unpack, codec.bytes)
    sent = model.config.num_producers
    given = terms(model, wire, weights="a" * 64, adapter=None, sent=sent, codec="int8")
    made = near_of(model, Offer(given, wire))
    stream = model.blocks(Texts(model, PROMPTS[:1]).run(np.array([[5]])), start=sent, stop=sent + 1)
    said = made.beyond()(stream, mx.array([[5]]), [0], logits=True)
    known = codec.unpack(codec.pack(stream.hidden[0], mx.array([5])), mx.array([5]))
    stream = within(stream._replace(hidden=known[None].astype(mx.float32)), model.config)
    assert said is not None and bits(said.logits) == bits(model.unembed(model.blocks(stream, start=sent + 1)))


def lent(of: Terms, count: int) -> dict:
    shapes = {lender.name: (1, lender.heads, count, lender.width) for lender in of.lenders}
    return {name: KV(mx.random.normal(shape), mx.random.normal(shape)) for name, shape in shapes.items()}


@pytest.fixture
def opened():
    """A receiver with one session, and what makes requests to it."""
    given = receiver()
    of, wire = offer(toy("gemma4"))
    given.open(opening(of, 7))

    def prefix(position, count, session=7):
        return written(Prefix(session, position, lent(of, count)), of)

    def states(position, count=1, session=7):
        tokens = mx.ones(count, mx.int32)
        return written(States(session, position, tokens, wire.pack(mx.ones((count, 32)), tokens)), of)

    return given, prefix, states


def test_what_is_missing_is_named_by_its_first_position(opened):
    given, prefix, states = opened
    with pytest.raises(Missing, match="^prefix missing from position 0$"):
        given.finish(states(0))
    assert given.finish(prefix(0, 10)) == b""
    with pytest.raises(Missing, match="^prefix missing from position 10$"):
        given.finish(states(8, 3))
    with pytest.raises(Missing, match="^prefix missing from position 10$"):
        given.finish(prefix(11, 1))
    assert given.finish(prefix(4, 3) + states(6)) and given.finish(states(5, 2))
    with pytest.raises(Missing, match="^prefix missing from position 7$"):
        given.finish(states(7))  # what stood there was taken back


def test_a_window_is_enough_of_a_sliding_lender(opened):
    given, prefix, states = opened
    of = offer(toy("gemma4")).terms
    full, sliding = ({name: lent(of, n)[name]} for n, name in ((20, "full_attention"), (5, "sliding_attention")))
    later = written(Prefix(7, 15, sliding), of)
    given.finish(written(Prefix(7, 0, full), of) + later)
    with pytest.raises(Missing, match="^prefix missing from position 13$"):
        given.finish(states(18))
    given.finish(written(Prefix(7, 13, {"sliding_attention": lent(of, 7)["sliding_attention"]}), of))
    assert given.finish(states(18)) and given.finish(states(18, 2))


def test_an_answer_does_not_hang_on_what_came_later(opened):
    given, prefix, states = opened
    given.finish(prefix(0, 30))
    first = given.finish(states(20, 3))
    given.finish(prefix(23, 40))
    assert given.finish(states(20, 3)) == first


def test_a_request_asks_once_at_its_end(opened):
    given, prefix, states = opened
    with pytest.raises(Refused, match="one request asks once, at its end"):
        given.finish(prefix(0, 4) + states(2) + states(3))
    with pytest.raises(Missing):
        given.finish(states(2))  # and nothing of it was taken
    with pytest.raises(Unopened, match="session 8 is not open"):
        given.finish(prefix(0, 4, session=8))
    with pytest.raises(Taken, match="session 7 is open; take another"):
        given.open(opening(offer(toy("gemma4")).terms, 7))


def test_hosts_that_differ_do_not_work_together():
    model, given = toy("gemma4"), receiver()
    for change, said in (
        ({"weights": "c" * 64}, "model is "),
        ({"adapter": None}, "adapter is 'bbbbbbbbbbbb' here and none there"),
        ({"sent": 3}, "raw after block 3 of 'whole' is not among what is read here: raw after block 1 of 'whole'"),
        ({"codec": "int8"}, "int8 after block 1 of 'whole' is not among"),
    ):
        with pytest.raises(Unlike, match=said):
            given.open(opening(offer(model, **change).terms, 1))
    assert not given.sessions
    other = replace(model.config, rms_norm_eps=1e-5)
    model_of = lambda config: terms(toy_with(config), plain(model), weights="a" * 64, adapter=None, sent=1).model
    assert model_of(model.config) != model_of(other), "the same weights under another config are another model"
    with pytest.raises(ValueError, match="cannot be sent after block 5; after 1, 2, 3, 4 they can"):
        offer(model, sent=5)


def toy_with(config):
    model = copy.copy(toy("gemma4"))
    model.config = config
    return model


def test_whoever_was_not_asked_for_longest_is_forgotten_first(opened):
    _, prefix, states = opened
    given, of = receiver(sessions=2), offer(toy("gemma4")).terms
    for number in (1, 2):
        given.open(opening(of, number))
        given.finish(prefix(0, 9, session=number))
    given.finish(states(8, session=1))
    given.open(opening(of, 3))
    assert list(given.sessions) == [1, 3]
    one = given.sessions[1].nbytes
    given = receiver(room=2 * one)
    for number in (1, 2, 3):
        given.open(opening(of, number))
        given.finish(prefix(0, 9, session=number))
    assert list(given.sessions) == [2, 3] and given.nbytes <= 2 * one
    given = receiver(room=one - 1)
    given.open(opening(of, 1))
    with pytest.raises(Refused, match=f"session 1 needs more than the {one - 1} bytes that there are"):
        given.finish(prefix(0, 9, session=1))
    assert not given.sessions


def test_a_peer_that_forgot_is_told_again():
    model, given = toy("gemma4"), receiver()
    made = near(given)
    beyond = Timed(made.beyond(), lambda call: given.sessions.clear() if call % 3 == 2 else None)
    assert away(model, beyond, PROMPTS[:1], 30) == [alone(model, PROMPTS[0], 30)] and all(beyond.answered)
    given = receiver(sessions=1)  # and so are two that take turns
    ours, theirs = near(given).beyond(), near(given).beyond()
    both = Timed(ours, lambda call: theirs(*at_the_tap(Texts(model, PROMPTS[1:2]), [3]), [0], logits=False))
    assert away(model, both, PROMPTS[:1], 12) == [alone(model, PROMPTS[0], 12)] and all(both.answered)


@pytest.mark.parametrize("reason", ["time", "lost"])
def test_what_arrives_late_changes_nothing_that_is_newer(reason):
    """Some requests seem lost, and come after one that was sent when their tokens had been taken back."""
    model = toy("gemma4")
    made = near(receiver(), hold=lambda path, n: path.endswith("finish") and n % 4 == 2, reason=reason)
    beyond = Timed(made.beyond())
    made.breaker = Breaker(99, 0)
    assert away(model, beyond, PROMPTS[:1], 40) == [alone(model, PROMPTS[0], 40)]
    again = all(beyond.answered)
    assert again if reason == "lost" else 3 < sum(beyond.answered) < len(beyond.answered) - 3
    assert len(made.link.late) > 3 and set(made.link.late) == {200}


def test_what_takes_long_to_send_arrives_in_pieces(monkeypatch):
    model = toy("gemma4")
    monkeypatch.setattr(peer, "PIECE", 3000)
    prompt = PROMPTS[0] * 5
    for seconds, first in ((20.0, 0), (1e-9, 5)):
        made = near(receiver())
        made.seconds = seconds
        beyond = Timed(made.beyond())
        assert away(model, beyond, [prompt], 45) == [alone(model, prompt, 45)]
        assert beyond.answered.index(True) >= first and all(beyond.answered[len(prompt) // 8 :])
        assert made.counts.failures["slow"] == beyond.answered.count(False) and made.breaker.failed == 0


def test_a_breaker_opens_rests_and_tries_once():
    now = [0.0]
    breaker = Breaker(3, 10.0, clock=lambda: now[0])
    for _ in range(2):
        breaker.told(False)
    assert breaker.lets
    breaker.told(True)
    for _ in range(3):
        assert breaker.lets
        breaker.told(False)
    assert not breaker.lets
    now[0] = 10.0
    assert breaker.lets
    breaker.told(False)
    assert not breaker.lets, "one failure is enough after a rest"
    now[0] = 20.0
    breaker.told(True)
    assert breaker.lets
    breaker.told(False, hopeless=True)
    assert not breaker.lets


@pytest.mark.parametrize(
    "url", ["", "here", "ftp://a", "http://", "http://me:pw@a", "file:///etc/passwd", "http://a?b"]
)
def test_an_address_that_is_none_is_refused(url):
    given = offer(toy("gemma4"))
    with pytest.raises(ValueError, match="the peer's address is .*; one such as http://127.0.0.1:9430"):
        Remote(url, given.terms, given.wire, toy("gemma4").config)
