"""The semantic stage on a whole run: what it measures is true of what it wrote, and broken heads measure so."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from agp.figures import met
from agp.train import FitConfig
from curricula import projection, training
from curricula.features import Features
from curricula.stages import semantic
from curricula.teacher import teacher
from heads import saved
from heads.semantic import NEVER, Head, loss
from heads.semantic import Config as Shape
from tests.curricula.run import smoke

CONFIG = semantic.Config(
    tap=8, least=2, width=192, picks=4, each=7, rows=128, fit=FitConfig(steps=60, rate=1e-2, evaluate_every=30)
)
FLOORS = {"auroc": ">= 0.75", "variance_explained": ">= 0.6", "spliced_agreement": ">= 0.65", "dead": "<= 0.3"}


def needs():
    return {name: smoke() / name for name in ("rows", "domain", "harvest")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("semantic")
    return out, semantic.run(CONFIG, needs(), out, None)


@pytest.fixture(scope="module")
def loaded():
    return teacher(smoke() / "domain")


def judged(head, loaded, config=CONFIG, change=None):
    roles, known = semantic.read(config, smoke() / "harvest", loaded, None)
    if change is not None:
        roles = change(roles)
    return projection.measured(head, roles["test"], roles["heads"], loaded)[0]


def closed(metrics):
    return {name for name, goal in FLOORS.items() if not met(metrics[name], goal)}


def test_a_head_that_learned_a_little_passes_what_broken_ones_fail(made):
    assert closed(made[1]) == set()


def test_what_was_measured_is_what_is_on_disk(made, loaded):
    out, metrics = made
    again = judged(saved.load(out, Shape, Head), loaded)
    assert {name: metrics[name] for name in again} == again


def test_a_head_to_which_all_states_are_one_is_caught(made, loaded):
    head = saved.load(made[0], Shape, Head)
    head.levels, head.limits = mx.full(head.levels.shape, NEVER), mx.full(head.limits.shape, NEVER)
    head.naming.weight = mx.zeros_like(head.naming.weight)
    found = judged(head, loaded)
    assert closed(found) == set(FLOORS)
    assert found["variance_explained"] < 0.05 and found["auroc"] == 0.5 and found["l0"] == 0 and found["dead"] == 1


def test_labels_that_mean_nothing_are_caught(loaded, tmp_path, monkeypatch):
    """Documents are given each other's labels before anything is learned; what is measured keeps its own."""
    plain = semantic.read

    def shuffled(*given):
        roles, known = plain(*given)
        of = roles["heads"]
        order = np.random.default_rng(0).permutation(len(of.features.begins))
        at = of.features.begins[order][of.features.document]
        labels = projection.Labels(of.labels.true[at], of.labels.known[at])
        return roles | {"heads": of._replace(labels=labels)}, known

    monkeypatch.setattr(semantic, "read", shuffled)
    found = semantic.run(CONFIG, needs(), tmp_path, None)
    assert "auroc" in closed(found) and found["auroc"] < 0.7


def test_what_a_document_is_called_is_no_help_on_test(loaded):
    """No document, and so no name, from which labels were learned is measured."""
    roles, _ = semantic.read(CONFIG, smoke() / "harvest", loaded, None)
    homes = {role: {d["cluster"] for d in of.features.documents} for role, of in roles.items()}
    assert (
        not homes["heads"] & homes["test"] and not homes["heads"] & homes["tune"] and not homes["tune"] & homes["test"]
    )


def test_thresholds_keep_the_number_of_active_latents(made, loaded):
    head = saved.load(made[0], Shape, Head)
    roles, _ = semantic.read(CONFIG, smoke() / "harvest", loaded, None)
    tune = projection.seen(head, roles["tune"], projection.line(roles["heads"], 32))
    assert 30 <= tune.active.mean() <= 32
    scores, (true, known) = tune.scores, roles["tune"].labels
    for c in range(scores.shape[1]):
        if true[:, c].any():
            said = (tune.named & known)[:, c]
            right = (said & true[:, c]).sum()
            best = max(f1(scores[known[:, c], c] >= s, true[known[:, c], c]) for s in np.unique(scores[:, c]))
            assert 2 * right / (said.sum() + true[:, c].sum()) == pytest.approx(best)


def f1(said, true):
    return 2 * (said & true).sum() / (said.sum() + true.sum())


def test_each_concept_has_a_line_and_those_left_out_are_listed(made):
    plots = json.loads((made[0] / "plots.json").read_text())
    head = saved.load(made[0], Shape, Head)
    assert [line["name"] for line in plots["concepts"]] == list(head.config.concepts)
    assert len(plots["left_out"]) == made[1]["left_out"] > 0
    named = [line for line in plots["concepts"] if line["auroc"] is not None]
    assert np.mean([line["auroc"] for line in named]) == pytest.approx(made[1]["auroc"], abs=1e-3)
    assert all(line["documents"] > 0 for line in named) and len(named) == made[1]["concepts"]


def test_it_comes_out_the_same_again_and_after_a_stop(made, tmp_path, monkeypatch):
    stop = training.fit

    def broken(*given, **named):
        return stop(*given[:3], replace(given[3]), *given[4:], **named)._replace(ended="interrupted")

    monkeypatch.setattr(training, "fit", broken)
    with pytest.raises(KeyboardInterrupt):
        semantic.run(CONFIG, needs(), tmp_path, None)
    monkeypatch.setattr(training, "fit", stop)
    assert semantic.run(CONFIG, needs(), tmp_path, None) == made[1]
    name = saved.FILE
    assert (tmp_path / name).read_bytes() == (made[0] / name).read_bytes()


def test_the_head_is_the_one_that_tune_liked_best(tmp_path):
    """At a rate at which the loss jumps, that is seldom the last one."""
    fit = FitConfig(steps=12, rate=0.3, floor=1.0, evaluate_every=2)
    semantic.run(replace(CONFIG, fit=fit), needs(), tmp_path, None)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    held = {row["step"]: row["held_loss"] for row in rows if "held_loss" in row}
    assert min(held, key=lambda step: held[step]) < 12
    head = saved.load(tmp_path, Shape, Head)
    roles, known = semantic.read(CONFIG, smoke() / "harvest", teacher(smoke() / "domain"), None)
    tune, best = roles["tune"], min(held.values())
    share = roles["heads"].labels.true.sum(0) / roles["heads"].labels.known.sum(0)
    at = np.arange(tune.features.count)
    weights = tune.labels.known * np.where(tune.labels.true, (1 - share) / share, 1.0)
    labels = mx.array(tune.labels.true.astype(np.float32))
    summed, count = loss(head, tune.states(at), labels, mx.array(weights, mx.float32))
    assert (summed / count).item() == pytest.approx(best, rel=1e-3)


def test_settings_that_make_no_sense_are_refused(tmp_path):
    config = replace(CONFIG, tap=5, active=(1, 2), kernel=str(tmp_path), picks=99)
    tap, active, picks, kernel = semantic.faults(config, [4, 6, 8, 10])
    assert tap == "tap is 5; states are kept after blocks 4, 6, 8, 10"
    assert active.startswith("active is (1, 2); a number for each of primitive, invariant, bundle")
    assert picks.startswith("picks is 99, of ") and "no more than width" in picks
    assert kernel.startswith(f"kernel: {tmp_path} is no file")


def test_it_stands_on_documents_that_share_a_primitive(loaded):
    roles, known = semantic.read(CONFIG, smoke() / "harvest", loaded, None)
    close, features = projection.near(roles["test"]), Features(smoke() / "harvest", "test")
    primitives = [set(d["concepts"].get("primitive", ())) for d in features.documents]
    for c, concept in enumerate(known.concepts):
        own = {
            d for d, about in enumerate(features.documents) if concept.name in about["concepts"].get(concept.type, ())
        }
        shared = set().union(*(primitives[d] for d in own))
        assert [bool(primitives[d] & shared) for d in features.document] == close[:, c].tolist()
