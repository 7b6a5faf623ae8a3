"""A bundle, fed a position at a time as decoding will feed it, decides what the calibrate stage measured."""

from functools import cache

import mlx.core as mx
import numpy as np
import pytest

from agp.cache import KV
from agp.layers import Place
from agp.models.decoder import Stream
from curricula import policy
from curricula.features import Features
from curricula.mending import stacked
from curricula.onward import Onward
from curricula.policy import Facing
from curricula.positions import Met
from curricula.teacher import teacher
from heads import bundle
from heads.bundle import Bundle, Drafter, Router
from tests.curricula.run import smoke

RISK = "0.05"


@cache
def loaded() -> tuple[Bundle, Features]:
    return bundle.load(smoke(), teacher(smoke() / "domain").model), Features(smoke() / "harvest", "test")


@cache
def at_once():
    """What the calibrate stage sees: the mended states, and what its head says of them and the other of plain ones."""
    given, test = loaded()
    _, states = stacked(smoke() / "depth", given.decoder, {"test": test})
    met = Met(given.decoder, test, given.glance, given.window, states["test"].read)
    return (
        states["test"],
        met.answers(given.late),
        Met(given.decoder, test, given.glance, given.window).answers(given.plain),
    )


def fed(given: Bundle, test: Features, document: int):
    """Its positions in turn: a router, the answer at each tap, and what was looked at."""
    batch, router = test.together([document]), Router(given, RISK)
    count, width = batch.chosen.shape[1], batch.tokens.shape[1]
    for n in range(count):
        after = count - 1 - n  # what is not there yet
        shared = {kind: KV(*(x[:, :, : width - after] for x in kv)) for kind, kv in batch.shared.items()}
        place = Place(batch.end - after, batch.pad)
        for tap in range(len(given.taps)):
            states = batch.states[: tap + 1, :, n : n + 1]
            yield int(batch.places[0, n]), tap, router(states, place, shared), router, (states, place, shared)


def longest(test: Features) -> list[int]:
    return np.argsort(-np.bincount(test.document), kind="stable")[:3].tolist()


def rounding(of: np.ndarray) -> float:
    """Of what mended states in half precision make, by how far apart answers lie."""
    return 1e-2 * float(of.std(0).max())


def test_what_it_says_one_position_at_a_time_is_what_was_said_of_all():
    given, test = loaded()
    states, late, plain = at_once()
    seen = 0
    for document in longest(test):
        for at, tap, _, router, now in fed(given, test, document):
            assert router.carried is not None
            read = given.mend(*now).state
            mended, lens = (
                given.look(router.carried, read),
                given.look(router.carried, given.read(now[0][-1]), mended=False),
            )
            assert np.array(read)[0, 0] == pytest.approx(states.read[at, tap].astype(float), abs=2e-2)
            for ours, wanted in ((mended.told, late), (lens.told, plain)):
                for name in ("route", "vitality", "leave", "hope", "earliest"):
                    told, of = np.array(getattr(ours, name))[0, 0], getattr(wanted, name)[:, tap]
                    assert told == pytest.approx(of[at], abs=rounding(of)), (name, tap)
            seen += 1
    assert seen == 4 * sum(np.bincount(test.document)[longest(test)])


def wide(scores: np.ndarray, low: float, high: float) -> float:
    """A threshold in the widest gap between these quantiles: rounding moves nothing across it."""
    some = np.sort(scores[np.isfinite(scores)])
    some = some[int(low * len(some)) : int(high * len(some))]
    widest = np.argmax(np.diff(some))
    return float(some[widest : widest + 2].mean())


def test_tokens_leave_where_the_policy_says():
    """The smoke run certifies nothing, so gates and threshold are put where about half look and half of these leave."""
    given, test = loaded()
    states, late, _ = at_once()
    exits, taps = (0, 2), len(given.taps)
    gate = tuple(wide(late.hope[:, t], 0.3, 0.5) for t in range(taps))
    facing = policy.gated(Facing(late.leave, ~states.agrees, test.document), late.hope, gate)
    limit = wide(facing.score[:, list(exits)], 0.3, 0.7)
    wanted = policy.left(facing.score, exits, limit)
    changed = given._replace(exits=exits, gate=gate, limits={"revive": {RISK: limit}})
    documents, first = range(len(test.begins)), np.full(test.count, taps)
    for document in documents:
        for at, tap, left, *_ in fed(changed, test, document):
            if left is not None and left.leaves.item():
                first[at] = min(first[at], tap)
    assert first.tolist() == wanted.tolist()
    assert {0, 2, taps} <= set(wanted.tolist())


def test_a_drafter_is_as_sure_as_the_first_tap_whatever_was_taken_back():
    """Three positions at a time, of which one, two or all three stay; what does not comes again."""
    given, test = loaded()
    late, turn = at_once()[1].leave[:, 0], 0
    for document in longest(test):
        batch, drafter, at = test.together([document]), Drafter(given), 0
        count, places = batch.chosen.shape[1], batch.places[0]
        while at < count:
            some = min(3, count - at)
            states = batch.states[0][:, at : at + some]
            there = np.ones((1, some), bool)
            for n in range(some):
                drafted = drafter(stream(batch, at + n, 1), states[:, : n + 1], there[:, : n + 1])
                assert drafted.read.shape[:2] == (1, 1)
                assert drafted.sure.item() == pytest.approx(late[places[at + n]], abs=rounding(late))
            together = drafter(stream(batch, at + some - 1, some), states, there).sure
            assert np.array(together)[0] == pytest.approx(late[places[at : at + some]], abs=rounding(late))
            kept, turn = min(some, 1 + turn % 3), turn + 1
            drafter.accept(states, np.arange(some)[None] < kept)
            at += kept
    assert turn > 6


def test_a_drafter_minds_only_what_is_there():
    """Of two replies side by side; between what one of them said before and now is a place that it lost."""
    given, test = loaded()
    batch, drafters = test.together(longest(test)[:2]), [Drafter(given) for _ in range(2)]
    states = batch.states[0]
    there = np.array([[True, False, True], [True, True, True]])
    both = drafters[0].last(states[:, :3], there, [[2, 3], [2, 3]])
    alone = drafters[1].last(states[:1, [0, 2]], there[:1, [0, 2]], [[1, 2]])
    assert mx.array_equal(both[:1], alone) and not mx.array_equal(both[0], both[1])


@pytest.mark.parametrize("size", [1, 3])
def test_a_drafter_whose_places_all_stay_minds_what_one_that_looks_for_them_minds(size):
    given, _ = loaded()
    drafter, states = Drafter(given), mx.random.normal((2, 9, given.decoder.config.hidden_size))
    stay = np.ones((2, size), bool)
    for at in range(0, 9, size):
        now = states[:, at : at + size]
        wanted = drafter.last(now, stay, [[size]] * 2)[:, 0]
        drafter.accept(now, stay)
        assert mx.array_equal(drafter.known, wanted)


def stream(batch, n: int, size: int) -> Stream:
    """At some positions that end with one, with all up to it."""
    after = batch.chosen.shape[1] - 1 - n
    width = batch.tokens.shape[1] - after
    shared = {kind: KV(*(x[:, :, :width] for x in kv)) for kind, kv in batch.shared.items()}
    return Stream(batch.states[0][:, n + 1 - size : n + 1], None, batch.end - after, batch.pad, shared)


def test_rows_that_end_or_go_on_alone_are_told_as_before():
    """A router of three replies, of which one goes on to the second tap, and two to the next position."""
    given, test = loaded()
    batch = test.together(longest(test))
    router, others = Router(given, RISK), [Router(given, RISK) for _ in range(2)]
    never = given._replace(limits={"revive": {RISK: None}})
    for each in (router, *others):
        each.bundle = never
    states = batch.states[:, :, :1]
    router(states[:1], Place(batch.end, batch.pad), batch.shared)
    router.narrow([2])
    router(states[:2, 2:], Place(batch.end, batch.pad), batch.shared)
    router.keep([0, 2])
    router.join(1)
    router(batch.states[:1, [0, 2, 1], 1:2], Place(batch.end, batch.pad), batch.shared)
    for row, other in zip((0, 2), others, strict=True):
        for n in range(2):
            other(batch.states[:1, row : row + 1, n : n + 1], Place(batch.end, batch.pad), batch.shared)
    others.append(Router(never, RISK))
    others[2](batch.states[:1, 1:2, 1:2], Place(batch.end, batch.pad), batch.shared)  # begun with this position
    assert router.carried is not None
    for row, other in enumerate(others):
        assert other.carried is not None
        assert np.array(router.carried.sum[row]) == pytest.approx(np.array(other.carried.sum[0]), abs=1e-5)


def test_without_a_threshold_nobody_looks():
    given, test = loaded()
    never = given._replace(limits={"revive": {RISK: None}})
    assert all(left is None for _, _, left, *_ in fed(never, test, longest(test)[0]))


def test_many_positions_at_once_are_as_one_at_a_time():
    given, test = loaded()
    batch = test.together(longest(test)[:2])
    flat = bundle.flat(batch.states[0])
    back = [mx.pad(flat, [(0, 0), (k, 0), (0, 0)])[:, : flat.shape[1]] for k in range(1, given.window)]
    carried = given.late.begun(mx.stack(back, axis=2))
    late = at_once()[1]
    for tap in range(len(given.taps)):
        hope, carried = given.hope(batch.states[tap], carried)
        read = given.mend(batch.states[: tap + 1], Place(batch.end, batch.pad), batch.shared).state
        look = given.look(carried, read)
        places = batch.places[batch.chosen]
        for ours, wanted in ((hope, late.hope), (look.told.leave, late.leave)):
            of = wanted[:, tap]
            assert np.array(ours)[batch.chosen] == pytest.approx(of[places], abs=rounding(of))


def test_codecs_send_states_and_bring_them_back():
    given, test = loaded()
    onward = Onward(given.decoder, test, given.sent)
    states, tokens = onward.states(np.arange(20)), mx.array(onward.tokens[:20])
    wires, sizes = given.wires(), {}
    for name, wire in wires.items():
        payload = wire.pack(states, tokens)
        back = wire.unpack(payload, tokens)
        sizes[name] = payload.nbytes // 20
        assert payload.shape == (20, wire.bytes) and back.shape == states.shape
        off = mx.linalg.norm(back - states, axis=-1) / mx.linalg.norm(states, axis=-1)
        assert off.mean().item() < {"raw": 0.005, "int8": 0.05}.get(name, 0.8), name
    assert sizes["8x"] < sizes["4x"] < sizes["int8"] < sizes["raw"]


def test_concepts_are_named():
    given, test = loaded()
    tap = test.taps.index(given.named)
    found = given.concepts(mx.array(test.states(np.arange(64))[:, tap])[None])
    assert len(found) == 64
    known = set(given.names.config.concepts)
    assert any(found) and all(set(names) <= known for names in found)
