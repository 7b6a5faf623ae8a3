"""Routed decoding: lossless says what full depth says, early what the router lets through, rows as they would alone.

Seen to fail when broken: places after a hole turned as if they followed each other, holes left in view, sliding layers
without slack, a draft's draw that is not its judge's, an audited row that is let go, what was taken back left in place.
"""

from functools import cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from agp.audit import Audit
from agp.early import Early, Watched
from agp.follow import Full, follow
from agp.generate import generate, greedy, make_sampler
from agp.lossless import Drafted, Lossless
from agp.pace import Pace, Text
from agp.replies import Replies
from tests import toys
from tests.toys import text

BOTH = pytest.mark.parametrize("family", ["gemma4", "gemma3n"])
# one of them is a single token: nothing of it is in the cache before the first step
PROMPTS: list[list[int]] = [np.array(text(1, n, seed=n))[0].tolist() for n in (23, 9, 1, 14)]


@cache
def toy(family: str):
    """With a head of its own: a quiet toy whose head is its embedding says the last token over and over."""
    mx.random.seed(3)
    return toys.toy(family, "shares most", tie_word_embeddings=False, max_position_embeddings=512)


class Lens:
    """Drafts by the model's own head at a tap, and is as sure as it is told."""

    def __init__(self, model, tap, sure=lambda logits: logits.max(-1) < 1e9):
        self.model, self.tap, self.sure, self.kept, self.asked = model, tap, sure, [], []

    def __call__(self, stream, states, there):
        size = stream.hidden.shape[1]
        assert states.shape[:2] == there.shape and mx.array_equal(states[:, -size:], stream.hidden)
        self.asked.append(size)
        read = self.model.normed(stream.hidden)
        return Drafted(read, 2.0 * self.sure(self.model.head(read)) - 1)

    def accept(self, states, stay):
        assert states.shape[:2] == stay.shape and stay[:, 0].all()
        self.kept += stay.sum(1).tolist()

    def keep(self, rows):
        pass

    def join(self, count):
        pass


class Parrot:
    """Proposes what comes next in a text that is known to it, or nonsense."""

    def __init__(self, texts):
        self.texts, self.rng, self.right, self.wrong = texts, np.random.default_rng(0), 0, 0

    def __call__(self, texts, drafts, most):
        return [self.after([*text, *more], most) for text, more in zip(texts, drafts, strict=True)]

    def after(self, said, most):
        known = next((text for text in self.texts if text[: len(said)] == said), None)
        if known is None or self.rng.random() < 0.2:
            self.wrong += 1
            return self.rng.integers(96, size=self.rng.integers(max(most, 0) + 1)).tolist()
        self.right += 1
        found = known[len(said) : len(said) + self.rng.integers(max(most, 0) + 1)]
        return [id if self.rng.random() < 0.8 else 7 for id in found]

    def accept(self, states):
        pass

    def keep(self, rows):
        pass


def alone(model, prompt, count, sampler=greedy, stop=()):
    return [step.token for step in generate(model, prompt, max_tokens=count, sampler=sampler, stop=stop)]


def said(way, rows, count, stop=()):
    found = [[] for _ in range(rows)]
    for token in follow(way, max_tokens=count, stop=stop):
        found[token.row].append(token.id)
    return found


@BOTH
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("most", [0, 1, 4])
def test_lossless_is_full_depth(family, rows, most):
    model = toy(family)
    lens = Lens(model, model.config.num_producers - 1)
    way = Lossless(Replies.begun(model, PROMPTS[:rows]), lens, most=most)
    assert said(way, rows, 40) == [alone(model, prompt, 40) for prompt in PROMPTS[:rows]]
    if most:
        assert 1 < np.mean(lens.kept) < most + 1, "some drafts are right and some are not"


@BOTH
@pytest.mark.parametrize("rows", [1, 4])
def test_side_by_side_at_full_depth_rows_are_as_alone(family, rows):
    model = toy(family)
    way = Full(Replies.begun(model, PROMPTS[:rows], chunk=5))
    assert said(way, rows, 20) == [alone(model, prompt, 20) for prompt in PROMPTS[:rows]]


@pytest.mark.parametrize("rows", [1, 4])
def test_what_nobody_will_hear_is_not_begun(rows, monkeypatch):
    """Full depth makes a pass a token, and drafts are no more than are left."""
    model, ran = toy("gemma4"), []
    replies = Replies.begun(model, PROMPTS[:rows])
    run = replies.run
    monkeypatch.setattr(replies, "run", lambda *of, **how: ran.append(of) or run(*of, **how))
    assert [len(text) for text in said(Full(replies), rows, 11)] == [11] * rows and len(ran) == 11
    for pace in (None, Turns()):
        way = Lossless(Replies.begun(model, PROMPTS[:rows]), Lens(model, 2), most=4, pace=pace)
        step, judged, room = way.step, way.judged, []

        def watched(counts, left, step=step, room=room):
            room.append([left])
            return step(counts, left)

        def seen(done, draws, judged=judged, room=room):
            room[-1].append(done.there.sum(1).max())
            return judged(done, draws)

        monkeypatch.setattr(way, "step", watched)
        monkeypatch.setattr(way, "judged", seen)
        assert [len(text) for text in said(way, rows, 11)] == [11] * rows and way.full.ahead is None
        wide = [(left, *positions) for left, *positions in room if positions]
        assert all(positions <= left for left, positions in wide) and max(positions for _, positions in wide) == 5


def test_short_texts_too_say_what_their_steps_took(monkeypatch):
    """All but a last one without drafts: else who asks for a few tokens at a time would draft for ever."""
    model, pace, told = toy("gemma4"), Pace(), []
    took = Text.took
    monkeypatch.setattr(Text, "took", lambda text, *of: told.append(of[0]) or took(text, *of))
    for prompt in PROMPTS * 4:
        said(Lossless(Replies.begun(model, [prompt]), Lens(model, 2), most=6, pace=pace), 1, 4)
    assert pace.plain is not None and True in told and False in told


@BOTH
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("least", [0.3, 1e9])
def test_whatever_is_proposed_it_is_full_depth(family, rows, least):
    """Proposals that are right, wrong or cut by a tap that is sure of another token, which goes on from there."""
    model = toy(family)
    expected = [alone(model, prompt, 40) for prompt in PROMPTS[:rows]]
    parrot = Parrot([prompt + text for prompt, text in zip(PROMPTS, expected, strict=False)])
    lens = Lens(model, model.config.num_producers - 1, lambda logits: ahead(logits) > least)
    way = Lossless(Replies.begun(model, PROMPTS[:rows]), lens, proposer=parrot, most=6)
    assert said(way, rows, 40) == expected
    assert parrot.right > 5 and parrot.wrong > 0 and 1.3 < np.mean(lens.kept) and max(lens.asked) > 2


@BOTH
def test_drawn_tokens_are_those_of_full_depth(family):
    model, sampler = toy(family), make_sampler(1.0, 0.9, seed=5)
    lens = Lens(model, model.config.num_producers - 1)
    way = Lossless(Replies.begun(model, PROMPTS), lens, sampler)
    assert said(way, 4, 40) == [alone(model, prompt, 40, sampler) for prompt in PROMPTS]
    assert np.mean(lens.kept) > 1.2


def test_a_stop_token_ends_its_row_and_no_other():
    model = toy("gemma4")
    whole = [alone(model, prompt, 40) for prompt in PROMPTS]
    stop = {whole[1][7]}
    expected = [alone(model, prompt, 40, stop=stop) for prompt in PROMPTS]
    assert len({len(row) for row in expected}) > 1
    for most in (0, 4):
        way = Lossless(Replies.begun(model, PROMPTS), Lens(model, model.config.num_producers - 1), most=most)
        assert said(way, 4, 40, stop) == expected


def test_it_ends_where_the_context_is_full():
    model = toys.toy("gemma4", "shares most", max_position_embeddings=26)
    way = Lossless(Replies.begun(model, [PROMPTS[0], PROMPTS[1]]), Lens(model, 1))
    assert [len(row) for row in said(way, 2, 50)] == [26 - 23 + 1, 26 - 9 + 1]


@pytest.mark.parametrize("family", ["gemma4", pytest.param("gemma3n", marks=pytest.mark.slow)])
def test_rows_full_of_holes_are_closed_up_and_others_may_join(family):
    """300 tokens: sliding buffers move their windows to the front, and holes are closed again and again."""
    model = toy(family)
    way = Lossless(Replies.begun(model, PROMPTS[:2], slack=10), Lens(model, model.config.num_producers - 1))
    found, counts = [[] for _ in range(4)], np.zeros(4, int)
    holes = []
    while min(map(len, found[:2])) < 300:
        rows = len(way.replies.current)
        for row, tokens in enumerate(way.step(counts[:rows])):
            found[row] += [token.id for token in tokens]
            counts[row] += len(tokens)
        holes.append(way.replies.holes)
        if len(holes) == 20:
            way.join(Replies.begun(model, PROMPTS[2:], slack=10))
    assert max(holes) == 5 and holes.count(0) > 10
    for prompt, row in zip(PROMPTS, found, strict=True):
        assert row[:300] == alone(model, prompt, 300)[: len(row)]


class Turns:
    """A pace by plan: four steps with drafts, three without."""

    def __init__(self):
        self.step = 0

    def text(self, drawn):
        return self

    def drafts(self):
        return self.step % 7 < 4

    def took(self, drafted, seconds, tokens):
        self.step += 1


class Minding(Lens):
    """Of the first row: all states that it was told stay."""

    def __init__(self, *given):
        super().__init__(*given)
        self.minded = []

    def accept(self, states, stay):
        super().accept(states, stay)
        self.minded += [states[0, place] for place in np.flatnonzero(stay[0]).tolist()]


@BOTH
@pytest.mark.parametrize("sampler", [greedy, make_sampler(1.0, 0.9, seed=5)], ids=["greedy", "drawn"])
def test_between_rounds_that_draft_full_depth_runs_ahead_and_nobody_can_tell(family, sampler):
    """Rows join and leave while a token is begun; what stays is told to the drafter, in order, and nothing else."""
    model, tap = toy(family), toy(family).config.num_producers - 1
    lens = Minding(model, tap)
    pace = Turns()
    way = Lossless(Replies.begun(model, PROMPTS[:2]), lens, sampler, pace=pace)
    found, counts, rows = [[] for _ in range(4)], np.zeros(4, int), [0, 1]
    for step in range(60):
        drafting = pace.drafts()
        for at, tokens in enumerate(way.step(counts[rows])):
            found[rows[at]] += [token.id for token in tokens]
            counts[rows[at]] += len(tokens)
        assert (way.full.ahead is None) == drafting
        if step in (5, 13):  # in the middle of what runs ahead
            rows.append(len(rows))
            way.join(Replies.begun(model, PROMPTS[rows[-1] : rows[-1] + 1]))
        if step == 29:
            rows = [0, 3, 2]
            way.keep([0, 3, 2])
    for prompt, told in zip(PROMPTS, found, strict=True):
        assert told == alone(model, prompt, len(told), sampler) and len(told) > 30
    whole_text = PROMPTS[0] + found[0][:-1]
    stream = model.blocks(model.embed(mx.array([whole_text])), stop=tap + 1)
    whole = stream.hidden[0, len(PROMPTS[0]) - 1 :]
    assert len(lens.minded) == len(whole) and mx.allclose(mx.stack(lens.minded), whole, rtol=1e-3, atol=1e-4)


@BOTH
def test_full_depth_that_runs_ahead_lets_rows_come_and_go(family):
    """Each token with the state after the block that is watched."""
    model = toy(family)
    way, block = Full(Replies.begun(model, PROMPTS[:2]), watch=1), 1
    found, counts, rows, states = [[] for _ in range(4)], np.zeros(4, int), [0, 1], []
    for step in range(20):
        for at, (token,) in enumerate(way.step(counts[rows])):
            found[rows[at]].append(token.id)
            states += [token.watched] if rows[at] == 0 else []
        counts[rows] += 1
        if step == 6:
            rows = [0, 1, 2, 3]
            way.join(Replies.begun(model, PROMPTS[2:]))
        if step == 11:
            rows = [3, 0]
            way.keep(rows)
    for prompt, told in zip(PROMPTS, found, strict=True):
        assert told == alone(model, prompt, len(told))
    whole_text = PROMPTS[0] + found[0][:-1]
    whole = model.blocks(model.embed(mx.array([whole_text])), stop=block + 1).hidden[0, len(PROMPTS[0]) - 1 :]
    assert mx.allclose(mx.stack(states), whole, rtol=1e-3, atol=1e-4)


class Left(NamedTuple):
    leaves: mx.array
    read: mx.array
    seen: None = None


class Margin:
    """Lets go where the lens is far enough ahead; remembers nothing, so it minds no rows."""

    def __init__(self, model, taps, least):
        self.model, self.taps, self.least, self.asked = model, taps, least, []

    def __call__(self, states, place, shared):
        self.asked.append(states.shape[:2])
        read = self.model.normed(states[-1])
        return Left(ahead(self.model.head(read)) > self.least, read)

    def narrow(self, rows):
        pass

    def keep(self, rows):
        pass


def ahead(logits):
    top = mx.sort(logits, axis=-1)
    return top[..., -1] - top[..., -2]


def without_a_cache(model, prompt, taps, least, count):
    """Tokens and the blocks they left after, each from the whole text so far."""
    ids, blocks = list(prompt), []
    for _ in range(count):
        seen = {}
        stream = model.embed(mx.array([ids]))
        for below, tap in zip((0, *[tap + 1 for tap in taps]), taps, strict=False):
            stream = model.blocks(stream, start=below, stop=tap + 1)
            seen[tap] = model.unembed(stream)[0, -1]
        last = model.config.num_layers - 1
        seen[last] = model([ids]).logits[0, -1]
        block = next((tap for tap in taps if ahead(seen[tap]).item() > least), last)
        ids.append(int(np.array(seen[block]).argmax()))
        blocks.append(block)
    return ids[len(prompt) :], blocks


@BOTH
def test_early_tokens_are_read_where_the_router_lets_go(family):
    model = toy(family)
    taps = (model.config.num_producers - 1, model.config.num_producers + 1)
    expected = [without_a_cache(model, prompt, taps, 1.0, 20) for prompt in PROMPTS]
    assert len({block for _, blocks in expected for block in blocks}) == 3, "all three depths occur"
    router = Margin(model, taps, 1.0)
    found = [([], []) for _ in PROMPTS]
    for token in follow(Early(Replies.begun(model, PROMPTS), router), max_tokens=20):
        found[token.row][0].append(token.id)
        found[token.row][1].append(token.block)
    assert found == expected
    assert {rows for taps, rows in router.asked if taps == 2} > {4}, "who left is not run on"


@BOTH
def test_an_audited_token_is_that_of_full_depth_and_is_compared(family):
    """With all of them audited the text is that of full depth, and what would have left is counted."""
    model = toy(family)
    taps, audit = (model.config.num_producers - 1, model.config.num_producers + 1), Audit(0.01, rate=1.0)
    router = Margin(model, taps, 0.2)
    found = [[] for _ in PROMPTS]
    for token in follow(Early(Replies.begun(model, PROMPTS), router, audit=audit), max_tokens=12):
        found[token.row].append(token.id)
    assert found == [alone(model, prompt, 12) for prompt in PROMPTS]
    wrong = 0
    for prompt, said_ in zip(PROMPTS, found, strict=True):
        for n, token in enumerate(said_):
            wrong += without_a_cache(model, prompt + said_[:n], taps, 0.2, 1)[0] != [token]
    assert (audit.looked, audit.differed) == (48, wrong) and 3 < wrong < 48


@BOTH
def test_a_broken_promise_ends_early_decoding(family):
    model = toy(family)
    replies, tap = Replies.begun(model, PROMPTS[:2]), model.config.num_producers - 1
    router, audit = Margin(model, (tap,), -1.0), Audit(0.01, rate=0.5)
    way = Watched(Early(replies, router, audit=audit), Lossless(replies, Lens(model, tap)))
    blocks, ids = [[], []], [[], []]
    for token in follow(way, max_tokens=120):
        blocks[token.row].append(token.block)
        ids[token.row].append(token.id)
    assert way.broken and 0 < audit.differed < audit.looked < 60
    for prompt, row in zip(PROMPTS, ids, strict=False):
        since = len(router.asked)  # one token of each row was asked for at a time
        assert row[since:] == alone(model, prompt + row[:since], 120 - since)
