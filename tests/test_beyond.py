"""Routed decoding with a second host: the text is that without it, also where the host comes and goes."""

import pytest

from agp.audit import Audit
from agp.early import Early, Watched
from agp.follow import follow
from agp.generate import make_sampler
from agp.lossless import Lossless
from agp.receiver import Offer, Receiver, plain, terms
from agp.replies import Replies
from tests.peers import Timed, near
from tests.test_routed import BOTH, PROMPTS, Lens, Margin, alone, said, toy


def peer(model, sent):
    wire = plain(model)
    made = near(Receiver(model, [Offer(terms(model, wire, weights="a" * 64, adapter=None, sent=sent), wire)]))
    made.terms, made.wire, made.config = next(iter(made.link.receiver.offers.values()))[0], wire, model.config
    return made


class Gone(Timed):
    """It answers two calls of three."""

    def __call__(self, *given, **how):
        found = super().__call__(*given, **how)
        return None if len(self.seconds) % 3 == 0 else found

    def keep(self, rows):
        self.beyond.keep(rows)

    def join(self, count):
        self.beyond.join(count)


@BOTH
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_lossless(family, rows, temperature):
    model, sampler = toy(family), make_sampler(temperature, 0.9, seed=5)
    tap = model.config.num_producers - 1
    beyond = Gone(peer(model, tap).beyond(rows))
    way = Lossless(Replies.begun(model, PROMPTS[:rows]), Lens(model, tap), sampler, beyond=beyond)
    tokens = list(follow(way, max_tokens=30))
    texts = [[token.id for token in tokens if token.row == row] for row in range(rows)]
    assert texts == [alone(model, prompt, 30, sampler) for prompt in PROMPTS[:rows]]
    assert all(beyond.answered) and len(beyond.answered) > 5
    assert not any(token.away for token in tokens if token.block == tap), "a draft that was right was made here"
    assert 5 < sum(token.away is not None for token in tokens) <= rows * len(beyond.answered)


@BOTH
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_early(family, temperature):
    model, sampler = toy(family), make_sampler(temperature, 0.9, seed=5)
    taps = (model.config.num_producers - 1, model.config.num_producers + 1)
    texts = []
    for beyond in (None, Gone(peer(model, taps[-1]).beyond(4))):
        audit = Audit(0.5, rate=0.3, seed=1)
        way = Early(Replies.begun(model, PROMPTS), Margin(model, taps, 1.0), sampler, audit=audit, beyond=beyond)
        texts.append((said(way, 4, 20), audit.looked, audit.differed))
    assert texts[0] == texts[1] and all(beyond.answered) and len(beyond.answered) > 5


@BOTH
def test_watched(family):
    model = toy(family)
    tap, texts = model.config.num_producers - 1, []
    for away in (False, True):
        early, late = (Gone(peer(model, tap).beyond(3)) if away else None for _ in range(2))
        replies = Replies.begun(model, PROMPTS[:3])
        audit = Audit(0.01, rate=0.5)
        way = Watched(
            Early(replies, Margin(model, (tap,), -1.0), audit=audit, beyond=early),
            Lossless(replies, Lens(model, tap), beyond=late),
        )
        texts.append(said(way, 3, 60))
    assert texts[0] == texts[1] and way.broken and all(late.answered) and late.answered
