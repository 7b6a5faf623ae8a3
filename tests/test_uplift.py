"""A peer of a larger regime goes on with what a smaller one made, and nobody takes its word for the smaller one's.

Seen to fail when broken: blocks counted as the smaller one does; one regime taken for another of the same name, or for
a larger one; a peer of another regime let in by lossless; keys and values of other blocks taken for those needed.
"""

from functools import cache

import mlx.core as mx
import numpy as np
import pytest

from agp.audit import Audit
from agp.beyond import Cost, Said, within
from agp.early import Early, Watched
from agp.follow import follow
from agp.lossless import Lossless
from agp.models.gemma3n import Config, Model
from agp.packet import opening
from agp.peer import Remote
from agp.receiver import Offer, Receiver, Unlike, plain, terms
from agp.regimes import Regime, nested, switches
from agp.replies import Replies
from agp.uplift import WHOLE, above, called, label, numbers, smaller, unfit
from tests.peers import PROMPTS, TOKEN, Texts, Timed, joined, serving, toy
from tests.test_peer import LIES, Liar
from tests.test_routed import Lens, Margin
from tests.toys import config_dict, random_weights

REGIMES = {
    "small": Regime(widths=(24, 16, 48, 40, 8), drop=(4,)),
    "narrow": Regime(widths=(24, 16, 48, 40, 32, 16)),
    "short": Regime(widths=(24, 16, 40, 8, 16), drop=(2,)),
    "longer": Regime(widths=(24, 16, 48, 48, 48), drop=(2,)),
    "wide": Regime(widths=(40, 48, 48, 48, 32), drop=(4,)),
}
PAIRS = pytest.mark.parametrize(
    "lower, upper", [("small", WHOLE), ("narrow", WHOLE), ("small", "wide"), ("short", "longer")]
)


@cache
def view(name: str):
    whole = toy("gemma3n")
    return whole if name == WHOLE else nested(whole, REGIMES[name], name)


def offer(lower: str, upper: str, sent: int = 1) -> Offer:
    raw = plain(view(lower))
    of = terms(view(lower), raw, upper=view(upper), weights="a" * 64, adapter=None, sent=sent)
    return Offer(of, raw)


def remote(address: str, of: Offer, upper: str) -> Remote:
    return Remote(address, of.terms, of.wire, view(upper).config, token=TOKEN, seconds=20.0, failures=1, rest=60)


def beyond_here(upper, stream, tokens, sent):
    """What the blocks of `upper` above `sent` say, here; tokens are looked up one by one, as the other host does."""
    inputs = mx.concatenate([upper.embed(tokens[:, i : i + 1]).inputs for i in range(tokens.shape[1])], axis=1)
    return upper.unembed(upper.blocks(stream._replace(inputs=inputs), start=above(upper, sent)))


@PAIRS
@pytest.mark.parametrize("sent", [1, 3])
def test_over_http_the_larger_regime_goes_on_with_the_state_of_the_smaller_to_the_bit(lower, upper, sent):
    below, there, of = view(lower), view(upper), offer(lower, upper, sent)
    texts = Texts(below, PROMPTS[:1], stop=above(below, sent))
    with serving(Receiver(there, [of])) as address, remote(address, of, upper) as peer:
        beyond = peer.beyond()
        assert not beyond.same
        for tokens, kept in (([5], 1), ([7, 8, 9], 2), ([3] * 12, 12), ([11, 4], 0)):
            stream = joined([texts.run(np.array([[token]])) for token in tokens], below.config)
            ids = mx.array([tokens])
            said = beyond(stream, ids, [0], logits=True)
            here = beyond_here(there, within(stream, there.config), ids, sent)
            assert said is not None, peer.counts.last
            assert mx.array_equal(said.logits, here) and said.logits.dtype == here.dtype
            alone = below.unembed(below.blocks(stream, start=above(below, sent)))
            assert not mx.allclose(here, alone), "another regime says something else"
            texts.forget([kept], len(tokens))


class Here:
    """In place of a peer: the same blocks on this host, for so many calls."""

    same = False

    def __init__(self, upper, sent, calls=10**6):
        self.upper, self.sent, self.left = upper, sent, calls

    def __call__(self, stream, tokens, rows, *, logits):
        self.left -= 1
        if self.left < 0:
            return None
        told = beyond_here(self.upper, stream, tokens, self.sent)
        return Said(np.array(mx.argmax(told, axis=-1)), told, [Cost(0, 0, 0.0)] * len(rows))


def early(lower: str, beyond, count=25):
    """Some of the tokens leave; each is told with whether it came from beyond."""
    model = view(lower)
    way = Early(Replies.begun(model, PROMPTS[:1]), Margin(model, (1,), 0.2), audit=Audit(0.5, 0.2), beyond=beyond)
    return [(token.id, token.away is not None) for token in follow(way, max_tokens=count)]


@PAIRS
def test_early_takes_the_larger_regimes_word_where_it_escalates_and_nowhere_else(lower, upper):
    of = offer(lower, upper)
    with serving(Receiver(view(upper), [of])) as address, remote(address, of, upper) as peer:
        found = early(lower, Timed(peer.beyond()))
    assert found == early(lower, Here(view(upper), 1)) and 3 < sum(away for _, away in found) < 25
    assert [id for id, _ in found] != [id for id, _ in early(lower, None)]


@pytest.mark.parametrize("lie", sorted(LIES.keys() - {"fewer positions"}))  # than one there cannot be
def test_whatever_such_a_peer_does_wrong_the_smaller_regime_goes_on_by_itself(lie):
    of = offer("small", WHOLE)
    liar = Liar(view(WHOLE), [of], after=2, twist=LIES[lie])
    with serving(liar) as address, remote(address, of, WHOLE) as peer:
        assert early("small", peer.beyond()) == early("small", Here(view(WHOLE), 1, calls=2))
        assert dict(peer.counts.failures) == {"odd": 1} and peer.counts.answered == 2


def test_hosts_whose_regimes_differ_say_so_in_a_line_and_the_text_is_this_hosts_own():
    given = Receiver(view(WHOLE), [offer(WHOLE, WHOLE), offer("narrow", WHOLE)])
    refusals = {
        offer("small", WHOLE): "raw after block 1 of 'small [0-9a-f]{12}' is not among what is read here: "
        "raw after block 1 of 'whole', raw after block 1 of 'narrow [0-9a-f]{12}'$",
        offer("narrow", "narrow"): "^regime above is 'whole' here and 'narrow [0-9a-f]{12}' there$",
    }
    for of, said in refusals.items():
        with pytest.raises(Unlike, match=said):
            given.open(opening(of.terms, 1))
    of = offer("small", WHOLE)
    with serving(given) as address, remote(address, of, WHOLE) as peer:
        assert early("small", peer.beyond()) == early("small", None)
        assert dict(peer.counts.failures) == {"terms": 1} and "small" in peer.counts.last
    other = nested(toy("gemma3n"), Regime(widths=(24, 16, 48, 40, 32, 24)), "narrow")
    assert label(other) != label(view("narrow")) and called(other) == called(view("narrow"))


def test_lossless_refuses_a_peer_of_another_regime_and_takes_one_of_the_same():
    model, same, larger = view("small"), offer("small", "small"), offer("small", WHOLE)
    with remote("http://127.0.0.1:1", larger, WHOLE) as peer, pytest.raises(ValueError, match="by another regime"):
        Lossless(Replies.begun(model, PROMPTS[:1]), Lens(model, 1), beyond=peer.beyond())
    with serving(Receiver(model, [same])) as address, remote(address, same, "small") as peer:
        texts = []
        for beyond in (peer.beyond(), None):
            way = Lossless(Replies.begun(model, PROMPTS[:1]), Lens(model, 1), beyond=beyond)
            texts.append([token.id for token in follow(way, max_tokens=20)])
        assert texts[0] == texts[1] and peer.counts.answered == peer.counts.calls > 3


def test_when_its_promise_breaks_early_falls_back_to_the_smaller_regime_alone():
    model, of = view("small"), offer("small", WHOLE)
    with serving(Receiver(view(WHOLE), [of])) as address, remote(address, of, WHOLE) as peer:
        replies = Replies.begun(model, PROMPTS[:1])
        first = Early(replies, Margin(model, (1,), -1.0), audit=Audit(0.01, 0.5), beyond=peer.beyond())
        tokens = list(follow(Watched(first, Lossless(replies, Lens(model, 1))), max_tokens=60))
    fallen = [token.fallen for token in tokens]
    assert 0 < sum(fallen) < 60 and not any(token.away for token in tokens if token.fallen)
    begun = PROMPTS[0] + [token.id for token in tokens if not token.fallen]
    way = Lossless(Replies.begun(model, [begun]), Lens(model, 1))
    rest = [token.id for token in follow(way, max_tokens=sum(fallen))]
    assert [token.id for token in tokens if token.fallen] == rest


def test_only_a_larger_regime_of_the_same_weights_can_go_on():
    config = Config.from_dict(config_dict("gemma3n", "shares most"))
    spare = Model(Config(**vars(config) | {"spare_kv": True}))
    random_weights(spare)
    whole, low = toy("gemma3n"), nested(spare, switches(spare.config)["full"])
    assert unfit(view("small"), whole, 1) == unfit(whole, whole, 1) == unfit(view("small"), view("wide"), 3) == []
    assert unfit(view("small"), spare, 1) == ["they are of two models"]
    assert unfit(view("small"), whole, 4) == ["states cannot be sent after block 4; after 1, 2, 3 they can"]
    assert unfit(view("small"), whole, 0) == ["states cannot be sent after block 0; after 1, 2, 3 they can"]
    for lower, upper in ((whole, view("small")), (view("narrow"), view("small")), (view("wide"), view("narrow"))):
        assert any("as wide or wider, and otherwise the same" in why for why in unfit(lower, upper, 1))
    assert any("keys and values of blocks" in why for why in unfit(low, spare, 5 - 1))
    with pytest.raises(ValueError, match="as wide or wider, and otherwise the same"):
        offer("wide", "narrow")
    assert [called(lower) for lower in smaller(whole, REGIMES | {"same": Regime()})] == list(
        REGIMES
    )  # the whole is none
    assert [called(lower) for lower in smaller(view("wide"), REGIMES)] == ["small"]
    assert numbers(view("small")) == (0, 1, 2, 3, 5) and above(view("small"), 4) == 4 and above(whole, 4) == 5
