"""Areas of many concepts at once are those of one after another, and so are their intervals."""

import numpy as np
import pytest

from curricula import concepts
from curricula.clustered import auroc, resampled


@pytest.fixture
def made():
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 40, 600)
    true = rng.uniform(size=(600, 3)) < [0.1, 0.5, 0.9]
    scores = np.round(rng.standard_normal((600, 3)) + true + rng.standard_normal(40)[cluster][:, None], 1)  # with ties
    return scores, true, rng.uniform(size=(600, 3)) < 0.8, cluster


def test_each_area_is_that_of_the_plain_function(made, monkeypatch):
    monkeypatch.setattr(concepts, "BLOCK", 500)  # clusters are cut by blocks
    scores, true, known, cluster = made
    found = concepts.areas(scores, true, known, cluster)
    for c in range(3):
        here = known[:, c]
        assert found.values[c] == pytest.approx(auroc(scores[here, c], true[here, c]))


def test_intervals_are_those_of_drawn_clusters(made):
    scores, true, known, cluster = made
    found, every = concepts.areas(scores, true, known, cluster), np.array([True, False, False])
    here = known[:, 0]
    slow = resampled(lambda weights: auroc(scores[here, 0], true[here, 0], weights[here]), cluster)
    fast = concepts.mean(found, every)
    assert fast is not None and fast.value == pytest.approx(slow.value)
    assert fast.interval == pytest.approx(slow.interval, abs=1e-4)  # the same seed draws the same clusters


def test_a_concept_that_always_holds_is_not_measured(made):
    scores, true, known, cluster = made
    true[:, 1] = True
    found = concepts.areas(scores, true, known, cluster)
    assert np.isnan(found.values[1])
    both = concepts.mean(found, np.ones(3, bool))
    assert both is not None and both.value == pytest.approx(found.values[[0, 2]].mean())
    assert concepts.mean(found, np.array([False, True, False])) is None


@pytest.mark.parametrize(
    "score, true, best",
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 2.5),
        ([1, 2, 3, 4], [0, 1, 0, 1], 1.5),
        ([1, 1, 1, 4], [0, 1, 0, 1], 2.5),  # equal scores stay together
        ([1, 2], [1, 1], 0.5),
    ],
)
def test_a_limit_is_where_f1_is_best(score, true, best):
    assert concepts.limit(np.array(score, float), np.array(true, bool)) == best
