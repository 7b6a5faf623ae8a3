"""What is said after a mended state is what the whole model says, and depends on what it was mended to."""

import mlx.core as mx
import numpy as np
import pytest

from curricula import splice
from curricula.features import Features
from curricula.teacher import teacher
from tests.curricula.run import smoke


@pytest.fixture(scope="module")
def loaded():
    return teacher(smoke() / "domain")


@pytest.mark.parametrize("number", [0, 2])
def test_states_left_as_they_are_say_what_the_model_says(number, loaded):
    features = Features(smoke() / "harvest", "test")
    same, none = splice.said(loaded.model, features, number, [lambda x: x, mx.zeros_like], size=7)
    assert same.agrees.mean() > 0.98 and none.agrees.mean() < 0.7
    for d in range(0, len(features.begins), 5):
        ids, first = features.of(d, "ids").tolist(), features.of(d, "first")
        logits = np.array(loaded.model([ids[:-1]]).logits)[0, first - 1 :].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        here = features.document == d
        np.testing.assert_allclose(same.loss[here], -logs[np.arange(len(logs)), ids[first:]], atol=0.03, rtol=0.02)


def test_a_batch_holds_every_document_once_and_those_of_like_length():
    features = Features(smoke() / "harvest", "heads")
    found = splice.batches(features, 8)
    assert sorted(sum(found, [])) == list(range(len(features.begins)))
    spans = [features.of(d, "length") - features.of(d, "first") for d in sum(found, [])]
    assert spans == sorted(spans)
