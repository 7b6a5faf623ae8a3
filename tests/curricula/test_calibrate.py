"""Labels with the depth module in place follow their definitions, and what is decided is what thresholds then do."""

import json

import mlx.core as mx
import numpy as np
import pytest

from curricula import labels, policy, recipes
from curricula.against import accepting
from curricula.clustered import auroc, clusters
from curricula.features import Features
from curricula.labels import Limits, sufficient
from curricula.mending import stacked
from curricula.policy import Facing, Plan
from curricula.positions import Met, judged
from curricula.probe import crossed
from curricula.stages import calibrate
from curricula.stages.calibrate import THRESHOLDS, certified, decided, surely, true
from curricula.stages.trajectory import GLIMPSE, LIMITS, settled
from curricula.teacher import teacher
from heads import glimpse, saved, trajectory
from tests.curricula.run import smoke

BLOCKS, WITHIN = 12, 2  # the tap nearest seven tenths of them


@pytest.fixture(scope="module")
def found():
    return {role: Features(smoke() / "harvest", role) for role in calibrate.ROLES}


@pytest.fixture(scope="module")
def states(found):
    return stacked(smoke() / "depth", teacher(smoke() / "domain").model, found)[1]


@pytest.fixture(scope="module")
def metrics():
    return json.loads((smoke() / "calibrate/manifest.json").read_text())["metrics"]


def test_labels_say_what_is_best_once_states_can_be_mended(found, states):
    features, mended = found["test"], states["test"]
    limit = Limits(kappa=1.0, mu=0.3, share=0.5)
    truth = true(features, limit, mended, BLOCKS)
    seen, enough = judged(features), sufficient(judged(features), limit)
    assert 0.02 < enough.mean() < 0.9 and labels.budget(features.taps, BLOCKS) == WITHIN
    met = set()
    for n in range(features.count):
        healed = [
            mended.agrees[n, t] and mended.divergence[n, t] <= 1.0 and mended.margin[n, t] >= 0.3 for t in range(4)
        ]
        good = [enough[n, t] or healed[t] for t in range(4)]
        assert truth.earliest[n].item() == next(t for t in range(5) if all(good[t:]))
        for t in range(4):
            if seen.agrees[n, t] and seen.divergence[n, t] <= 1.0 and seen.margin[n, t] >= 0.3:
                wanted = "accept_local"
            elif healed[t]:
                wanted = "revive_local"
            else:
                wanted = "continue_local" if any(good[t + 1 : WITHIN + 1]) else "escalate"
            assert labels.ROUTES[truth.route[n, t].item()] == wanted
            met.add(wanted)
    assert met == set(labels.ROUTES)
    assert np.array_equal(np.array(truth.agrees), mended.agrees.astype(np.float32))


def test_three_decisions_are_faced_each_with_its_own_mistake(found):
    rng = np.random.default_rng(0)
    late = {
        role: Facing(rng.normal(size=(of.count, 4)), rng.random((of.count, 4)) < 0.3, of.document)
        for role, of in found.items()
    }
    early = {role: rng.normal(size=of.score.shape) for role, of in late.items()}
    hope = {role: rng.normal(size=of.score.shape) for role, of in late.items()}
    plan = Plan((1, 3), [0.0, -np.inf, 0.0, 0.5])
    decisions = decided(plan, WITHIN, found, early, late, hope)
    assert {name: of.taps for name, of in decisions.items()} == {
        "accept": (0, 1, 2, 3),
        "revive": (1, 3),
        "escalate": (WITHIN,),
    }
    accept, revive, escalate = (of.facing["test"] for of in decisions.values())
    assert np.array_equal(accept.differs, ~found["test"].whole("agrees"))  # of the state as it is
    assert np.array_equal(accept.score, early["test"])
    shut = hope["test"] < np.array(plan.gate)
    assert np.array_equal(np.isinf(revive.score), shut) and 0.1 < shut.mean() < 0.9
    assert np.array_equal(revive.score[~shut], late["test"].score[~shut])
    assert np.array_equal(revive.differs, late["test"].differs)
    assert np.array_equal(escalate.differs, ~late["test"].differs)  # handed over, though it could be mended
    assert np.array_equal(escalate.score, -late["test"].score)


def test_a_document_is_a_whole_text_however_many_windows_were_taken_of_it(found, tmp_path, monkeypatch):
    """Windows of one text are not independent: counted one by one they promise what they cannot."""
    kept, plain = {}, calibrate.decided

    def spied(plan, within, features, early, late, hope):
        kept.update(late)
        return plain(plan, within, features, early, late, hope)

    monkeypatch.setattr(calibrate, "decided", spied)
    needs = {name: smoke() / name for name in ("domain", "harvest", "trajectory", "depth")}
    calibrate.run(recipes.smoke().calibrate, needs, tmp_path, None)
    for role, facing in kept.items():
        assert np.array_equal(facing.document, clusters(found[role]))
    assert kept["calibrate"].document.max() + 1 < len(found["calibrate"].begins)
    accept = plain(Plan((0,), [0.0] * 4), WITHIN, found, {r: of.score for r, of in kept.items()}, kept,
                   {r: of.score for r, of in kept.items()})["accept"].facing["calibrate"]  # fmt: skip
    assert np.array_equal(accept.document, clusters(found["calibrate"]))


def test_what_is_certified_is_what_its_threshold_does_on_test():
    rng = np.random.default_rng(0)

    def facing(documents):
        document = np.repeat(np.arange(documents), 6)
        score = rng.random((len(document), 2))
        return Facing(score, rng.random(score.shape) > score**0.2, document)

    facing_of = {"calibrate": facing(400), "test": facing(100)}
    config = calibrate.Config(risks=(0.02, 0.1), grid=40, resplits=20)
    told = certified(config, calibrate.Decision((0, 1), facing_of))
    strict, lax = told["0.02"], told["0.1"]
    assert strict["leaving"] < lax["leaving"] and lax["threshold"] < strict["threshold"]
    test = facing_of["test"]
    left = policy.left(test.score, (0, 1), lax["threshold"])
    wrong = np.array([at < 2 and test.differs[n, at] for n, at in enumerate(left)])
    assert lax["risk"] == pytest.approx(wrong.mean()) and lax["leaving"] == pytest.approx((left < 2).mean())
    assert lax["risk_interval"][0] < lax["risk"] < lax["risk_interval"][1] and lax["risk"] < 0.15


def test_where_nothing_can_be_promised_nothing_leaves():
    score = np.random.default_rng(0).random((100, 1))
    never = Facing(score, np.ones((100, 1), bool), np.arange(100))
    config = calibrate.Config(risks=(0.01, 0.02), resplits=4)
    told = certified(config, calibrate.Decision((0,), {"calibrate": never, "test": never}))
    assert {(of["threshold"], of["risk"], of["leaving"]) for of in told.values()} == {(None, 0.0, 0.0)}
    assert all(of["risk_interval"] == [0, 0] and of["violations"] == 0 for of in told.values())


def test_accepting_is_at_its_optimum_and_nothing_else_is_touched(found):
    """Of what was learned and all plain facts: where these say nothing of it, what was learned still counts."""
    decoder, features = teacher(smoke() / "domain").model, found["tune"]
    glance = saved.load(smoke() / "trajectory" / GLIMPSE, glimpse.Config, glimpse.Head)
    head = saved.load(smoke() / "trajectory", trajectory.Config, trajectory.Head)
    met = Met(decoder, features, glance, 4)
    read, halves = met.read_by(head), clusters(features) % 2 == 0
    before, last = met.answers(head), np.array(head.last)
    hidden = read[:, :, 0] > np.median(read[:, :, 0])  # what no plain fact says
    last[:, :, labels.ACCEPT] = 0
    last[:, 0, labels.ACCEPT] = 3
    head.last = mx.array(last)
    settled(head, met, hidden)
    after, first = met.answers(head), head.first.shape[1] - 2
    plain = read[:, :, first : first + 2 + len(glimpse.FACTS)]
    for tap in range(4):
        both = np.concatenate([3 * read[:, tap, :1], plain[:, tap]], axis=1)
        wanted = both @ crossed(both, hidden[:, tap].astype(float), halves)
        np.testing.assert_allclose(accepting(after.route)[1][:, tap], wanted, rtol=1e-2, atol=1e-2)
        assert auroc(wanted, hidden[:, tap]) > 0.95
    assert np.array_equal(before.route[..., 1:], after.route[..., 1:])
    assert all(np.array_equal(a, b) for a, b in zip(before[1:], after[1:], strict=True))


def test_leaving_and_hope_are_at_their_optimum_and_nothing_else_is_touched(found, states):
    decoder = teacher(smoke() / "domain").model
    glance = saved.load(smoke() / "trajectory" / GLIMPSE, glimpse.Config, glimpse.Head)
    head = saved.load(smoke() / "trajectory", trajectory.Config, trajectory.Head)
    met = Met(decoder, found["tune"], glance, 4, states["tune"].read)
    before, agrees = np.array(head.last), states["tune"].agrees
    surely(head, met, agrees)
    changed = (np.array(head.last) != before).any((0, 1))
    assert np.flatnonzero(changed).tolist() == [len(labels.ROUTES) + 1]
    features, halves = met.read_by(head), clusters(found["tune"]) % 2 == 0
    said = head.say(mx.array(features))
    for tap in range(4):
        label = agrees[:, tap].astype(float)
        seen = features[:, tap, : head.first.shape[1] + len(glimpse.FACTS)]  # and not all of what was read
        leave = seen @ crossed(seen, label, halves)
        np.testing.assert_allclose(np.array(said.leave)[:, tap], leave, rtol=1e-2, atol=1e-2)
        known = features[:, tap, : head.first.shape[1]]
        np.testing.assert_allclose(
            np.array(said.hope)[:, tap], known @ crossed(known, label, halves), rtol=1e-2, atol=1e-2
        )


def test_thresholds_on_disk_are_those_that_were_measured(metrics):
    told = json.loads((smoke() / "calibrate" / THRESHOLDS).read_text())
    assert {name: told[name] for name in metrics["decisions"]} == metrics["decisions"]
    assert metrics["exits"] == [told["taps"][t] for t in told["exits"]] and told["budget"] == WITHIN
    assert len(told["gate"]) == len(told["taps"]) == 4


def test_checks_are_counted(metrics, found):
    """Multiplications of what a check reads: module, glance and head."""
    depth, before = (json.loads((smoke() / name / "manifest.json").read_text()) for name in ("depth", "trajectory"))
    head = trajectory.Head(saved.settings(smoke() / "calibrate" / saved.CONFIG, trajectory.Config))
    for t, tap in enumerate(found["test"].taps):
        hoping, rest = head.macs(t)
        module = depth["metrics"]["macs"][str(tap)]
        assert metrics["checks"]["hoping"][t] == hoping
        assert metrics["checks"]["looking"][t] == module + before["metrics"]["glance_macs"] + rest


def test_limits_are_those_of_the_trajectory_stage(found):
    limit = json.loads((smoke() / "trajectory" / LIMITS).read_text())
    assert limit == pytest.approx(labels.limits(judged(found["tune"]))._asdict())
