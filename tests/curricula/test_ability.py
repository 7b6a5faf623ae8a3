"""What a model foresees, counted token by token; and what an adapter gained, a document counting once."""

import numpy as np
import pytest

import agp
from agp.data import Row
from agp.supervise import prepare
from curricula.ability import ability
from curricula.stages.adapt import able, compared

TEXTS = ["def f(x):\n    return x\n", "import os\n", "class A:\n    pass\n\n\nclass B:\n    pass\n"]


@pytest.fixture(scope="module")
def loaded():
    return agp.load("tiny-gemma4", dtype="float32")


def rows(documents):
    return [Row(f"a:{i}", "text", (), TEXTS[i], name, str(i)) for i, name in enumerate(documents)]


def test_it_is_what_a_slow_count_says(loaded):
    examples = prepare(rows("abc"), loaded.tokenizer, 64).examples
    for example, told in zip(examples, ability(loaded.model, examples), strict=True):
        right = lost = 0.0
        logits = np.array(loaded.model([example.ids.tolist()]).logits[0]).astype(np.float64)
        for k in range(1, len(example.ids)):
            shares = np.exp(logits[k - 1] - logits[k - 1].max())
            right += int(shares.argmax() == example.ids[k])
            lost -= np.log(shares[example.ids[k]] / shares.sum())
        np.testing.assert_allclose(told, [right, lost, len(example.ids) - 1], rtol=1e-5)


def test_rows_of_one_document_are_counted_as_one(loaded):
    apart, together = (able(loaded, rows(names), 64) for names in ("abc", "aab"))
    np.testing.assert_allclose(together, [apart[0] + apart[1], apart[2]], rtol=1e-6)


def test_a_document_counts_once_however_long_it_is():
    before = {"ours": np.array([[0, 10.0, 10], [0, 1000.0, 1000]]), "general": np.array([[90, 1.0, 100]])}
    after = {"ours": np.array([[0, 0.0, 10], [0, 1000.0, 1000]]), "general": np.array([[87, 1.0, 100]])}
    found = compared(before, after)
    assert found["loss_drop"] == pytest.approx(0.5) and found["general_drop"] == pytest.approx(3.0)
