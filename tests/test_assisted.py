"""Google's drafter in lossless decoding: the text is that of full depth, and what it is handed is what full depth has.

Target and drafter are random ones that transformers wrote. An oracle in the drafter's place knows what comes after the
states of some texts, and nothing of any other state, so that a wrong one is seen as a draft that is not kept.

Seen to fail when broken: the state of another place, of another row, or kept after the blocks above ran elsewhere; keys
of drafts in view; a row that joined and is asked at once; a tap's own token that the drafter is not told of.
"""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from agp.assisted import Assisted
from agp.cache import KV
from agp.generate import greedy, make_sampler
from agp.lookup import Lookup
from agp.lossless import Lossless, Untapped
from agp.models.assistant import Ahead, Said, newest
from agp.replies import Replies
from tests.parity.test_assistant import make_four
from tests.test_beyond import Gone, peer
from tests.test_routed import PROMPTS, Lens, Turns, ahead, alone, said

SILENT = {"longest": 1, "least": 2}  # a lookup that never knows
DRAWN = make_sampler(1.0, 0.9, seed=5)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    sizes = {"num_kv_shared_layers": 4, "max_position_embeddings": 512}
    four = make_four(tmp_path_factory.mktemp("four"), "its own head", "centroids", seed=3, **sizes)
    return four.model, four.assistant


class Counted:
    """How often it is asked, and for how many rows."""

    def __init__(self, assistant):
        self.assistant, self.asked = assistant, []

    def step(self, vector, state, place, shared):
        self.asked.append(len(vector))
        return self.assistant.step(vector, state, place, shared)


class Oracle:
    """Knows what comes next, but for every so many places."""

    def __init__(self, model, texts, wrong=0):
        self.model, self.wrong, self.lost, self.found = model, wrong, 0, 0
        self.states, self.vectors, self.ids, self.known = [], [], [], []
        for text in texts:
            stream = model.blocks(model.embed(mx.array([text])))
            self.states.append(np.array(model.normed(stream.hidden))[0])
            self.vectors.append(np.array(model.embed_vectors(mx.array(text))))
            self.ids.append(text)
            self.known.append({kind: np.array(kv.keys)[0] for kind, kv in stream.shared.items()})

    def step(self, vector, state, place, shared):
        ids, on = np.zeros((len(state), 1), int), np.zeros(state.shape)
        for row in range(len(state)):
            at = self.find(np.array(state[row, 0]), np.array(vector[row, 0]))
            if not np.any(np.array(state[row])):
                continue
            if at is None:
                self.lost += 1
                continue
            text, index = at
            self.found += 1
            self.look(row, place, shared, self.known[text], index + 1)
            ids[row], on[row] = self.ids[text][index + 2], self.states[text][index + 1]
            if self.wrong and index % self.wrong == 0:
                ids[row] = 95 - ids[row]
        return Said(mx.array(ids)[..., None], mx.zeros((len(ids), 1, 1))), mx.array(on).astype(state.dtype)

    def find(self, state, vector):
        """Which text, and the place in it that has this state and is followed by this token."""
        for text, (states, vectors) in enumerate(zip(self.states, self.vectors, strict=True)):
            near = np.abs(states[:-2] - state).max(1) + np.abs(vectors[1:-1] - vector).max(1)
            if near.size and near.min() < 1e-3:
                return text, int(near.argmin())
        return None

    def look(self, row, place, shared, known, newest):
        """All drafts of a round stand in one place, and see the keys before it, which are those of full depth."""
        start = place.start_of(1)
        first = start if isinstance(start, int) else start[row].item()
        assert first <= newest
        for kind, kv in shared.items():
            keys = np.array(kv.keys[row])
            where = np.arange(first) if place.where is None else np.array(place.where[row])
            where = where[-keys.shape[1] :]
            assert where.max() == first - 1
            assert np.abs(keys[:, where >= 0] - known[kind][:, where[where >= 0]]).max() < 1e-4


def texts_of(model, count, sampler=greedy):
    return [prompt + alone(model, prompt, count, sampler) for prompt in PROMPTS]


def begun(model, assistant, prompts=PROMPTS, tap=None, lookup=None, sampler=greedy, **how):
    replies = Replies.begun(model, prompts)
    proposer = Assisted(assistant, replies, lookup or Lookup(**SILENT))
    return Lossless(replies, tap or Untapped(model.config.num_producers - 1), sampler, proposer=proposer, **how)


@pytest.mark.parametrize("sampler", [greedy, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("tapped", [False, True])
def test_whatever_it_drafts_the_text_is_that_of_full_depth(pair, tapped, rows, sampler):
    model, assistant = pair
    counted, tap = Counted(assistant), Lens(model, 1, lambda logits: ahead(logits) > 0.3) if tapped else None
    way = begun(model, counted, PROMPTS[:rows], tap, Lookup(), sampler)
    assert said(way, rows, 40) == [alone(model, prompt, 40, sampler) for prompt in PROMPTS[:rows]]
    assert len(counted.asked) > 20


@pytest.mark.parametrize("sampler", [greedy, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("rows", [1, 4])
def test_drafts_of_who_knows_are_all_kept(pair, rows, sampler):
    """Three drafts and the token after them in every round but the first, of which no state was known before."""
    model, _ = pair
    texts = texts_of(model, 40, sampler)[:rows]
    oracle = Oracle(model, texts)
    way, counts, found = begun(model, oracle, PROMPTS[:rows], sampler=sampler), np.zeros(rows, int), []
    for _ in range(8):
        told = way.step(counts)
        found.append([len(tokens) for tokens in told])
        counts += found[-1]
    assert found == [[1] * rows] + [[4] * rows] * 7
    assert oracle.lost == 0
    assert way.replies.texts == [text[: len(prompt) + 29] for text, prompt in zip(texts, PROMPTS, strict=False)]


def test_rounds_without_drafts_hand_over_their_state_too(pair):
    """Full depth has run ahead by then: the state is that of the token which was said."""
    model, _ = pair
    texts = texts_of(model, 40)[:2]
    oracle = Oracle(model, texts)
    way, counts, found = begun(model, oracle, PROMPTS[:2], pace=Turns()), np.zeros(2, int), []
    for _ in range(11):
        told = way.step(counts)
        found.append([len(tokens) for tokens in told])
        counts += found[-1]
    assert found == [[1, 1], *[[4, 4]] * 3, *[[1, 1]] * 4, *[[4, 4]] * 3]
    assert oracle.lost == 0


@pytest.mark.parametrize("wrong", [0, 3])
def test_rows_come_and_go_and_each_is_drafted_from_its_own_state(pair, wrong):
    model, _ = pair
    texts = texts_of(model, 110)
    oracle = Oracle(model, texts, wrong)
    way, counts, rows = begun(model, oracle, PROMPTS[:2]), np.zeros(4, int), [0, 1]
    for n in range(14):
        if n in (3, 5):
            rows.append(len(rows) if n == 3 else 3)
            way.join(Replies.begun(model, [PROMPTS[rows[-1]]]))
            assert not way.proposer(way.replies.texts, [[]] * len(rows), 6)[-1], "nothing is known of it yet"
        if n == 8:
            way.keep([1, 3])
            rows = [1, 3]
        told = way.step(counts[rows])
        for row, tokens in zip(rows, told, strict=True):
            if not wrong:
                assert len(tokens) == (4 if counts[row] else 1), "who joined has no state before its first round"
            counts[row] += len(tokens)
        assert way.replies.texts == [texts[row][: len(PROMPTS[row]) + counts[row]] for row in rows]
    assert oracle.found > 50
    if wrong:
        assert 1.2 < counts[1] / 14 < 3.8, "some are kept and some are not"
    else:
        assert oracle.lost == 0


def test_the_tap_goes_on_where_it_knows_better_and_the_drafter_after_it(pair):
    model, _ = pair
    text = PROMPTS[0] + alone(model, PROMPTS[0], 60)
    oracle, tap, chains, passes = Oracle(model, [text], wrong=3), Knowing(model, 1), [], []
    way = begun(model, oracle, PROMPTS[:1], tap, most=6)
    chain = way.proposer.chain
    way.proposer.chain = lambda fed, count: chains.append((fed[0], found := chain(fed, count))) or found
    for n in range(8):
        assert len(way.step(np.array([7 * n]))[0]) == 7, "what the drafter has wrong the tap puts right"
        passes.append(len(tap.asked))
    assert way.replies.texts == [text[: len(PROMPTS[0]) + 56]]
    assert passes[0] == 6, "without a state the tap drafts alone"
    assert 1.0 < np.mean(np.diff(passes)) < 4.0, "and with one it goes on by many"
    going_on = [(fed, found[0]) for fed, found in chains if len(fed) > 1]
    assert len(going_on) > 5 and all(contains(text, [*fed, *found[:2]]) for fed, found in going_on)


def contains(text, part):
    return any(text[at : at + len(part)] == part for at in range(len(text)))


class Knowing(Lens):
    """A tap that reads what full depth says, wherever it stands."""

    def __call__(self, stream, states, there):
        told = super().__call__(stream, states, there)
        return told._replace(read=self.model.normed(self.model.blocks(stream, start=self.tap + 1).hidden))


def test_without_the_blocks_above_there_is_no_state_and_nothing_is_drafted(pair):
    model, assistant = pair
    beyond, counted = Gone(peer(model, 1).beyond(3)), Counted(assistant)
    way = begun(model, counted, PROMPTS[:3], Lens(model, 1), lookup=Lookup(), beyond=beyond)
    expected, found, counts = [alone(model, prompt, 90) for prompt in PROMPTS[:3]], [[], [], []], np.zeros(3, int)
    here = False
    for _ in range(12):
        asked = len(counted.asked)
        for row, tokens in enumerate(way.step(counts)):
            found[row] += [token.id for token in tokens]
            counts[row] += len(tokens)
        assert here or len(counted.asked) == asked, "of a round that ended elsewhere no state is known"
        here = len(beyond.seconds) % 3 == 0
    assert [row[: len(of)] for row, of in zip(expected, found, strict=True)] == found and counted.asked


def test_rows_out_of_step_are_drafted_as_they_are_alone(pair):
    model, assistant = pair
    replies = Replies.begun(model, PROMPTS)
    more = mx.array(np.random.default_rng(0).integers(1, 96, (4, 7)))
    normed = model.normed(replies.run(more, model.config.num_layers).hidden)
    kept = np.arange(7) < np.array([[3], [7], [1], [5]])
    replies.retain(kept)
    texts = [
        [*prompt[:-1], *row[mask].tolist()] for prompt, row, mask in zip(PROMPTS, np.array(more), kept, strict=True)
    ]
    token, state = (
        mx.array([[5], [6], [7], [8]]),
        mx.stack([normed[row, n - 1 : n] for row, n in enumerate(kept.sum(1))]),
    )
    together = assistant.step(model.embed_vectors(token), state, *newest(replies.cache, model.config, replies.told))
    for row, text in enumerate(texts):
        one, cache = Replies.begun(model, [[*text, 5]]), slice(row, row + 1)
        own = newest(one.cache, model.config)
        single = assistant.step(model.embed_vectors(token[cache]), state[cache], *own)
        assert together[0].likeliest[row].item() == single[0].likeliest.item()
        assert mx.allclose(together[1][cache], single[1], atol=1e-5)


def trained(model, assistant, texts, steps):
    """It learns what comes after each place of some texts, all places at once."""
    stream = model.blocks(model.embed(mx.array([texts])))
    normed, size = model.normed(stream.hidden)[0], len(texts)
    count = size - 2
    where = np.where(np.arange(size) < 1 + np.arange(count)[:, None], np.arange(size), -1)
    shared = {kind: KV(*(mx.repeat(a, count, 0) for a in kv)) for kind, kv in stream.shared.items()}
    vectors, after = model.embed_vectors(mx.array(texts[1:-1]))[:, None], mx.array(texts[2:])

    def loss(assistant):
        place = Ahead(size + 1, None, where=mx.array(where.astype(np.int32)))
        told, _ = assistant.step(vectors, normed[:count, None], place, shared)
        return nn.losses.cross_entropy(told.logits[:, 0], after, reduction="mean")

    way, step = optim.Adam(5e-3), nn.value_and_grad(assistant, loss)
    for _ in range(steps):
        value, grads = step(assistant)
        way.update(assistant, grads)
        mx.eval(assistant.parameters(), way.state)
    return value.item()


def test_a_drafter_that_was_trained_on_a_text_has_its_drafts_kept(tmp_path):
    sizes = {"num_kv_shared_layers": 4, "max_position_embeddings": 512}
    four = make_four(tmp_path, "its own head", "every token", seed=3, **sizes)
    model, kept = four.model, []
    text = texts_of(model, 60)[0]
    for steps in (0, 80):
        if steps:
            assert trained(model, four.assistant, text, steps) < 0.1
        way, counts, rounds = begun(model, four.assistant, PROMPTS[:1]), np.zeros(1, int), 0
        while counts[0] < 60:
            counts[0] += len(way.step(counts)[0])
            rounds += 1
        assert way.replies.texts[0][: len(text)] == text
        kept.append(counts[0] / rounds)
    assert kept[0] < 1.2 and kept[1] > 1.8
