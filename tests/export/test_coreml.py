"""A saved package says what it was described to say: to the rounding of its weights, and of half precision."""

import numpy as np
import pytest

from export import evaluate
from export.ops import Plain
from tests.export import operations
from tests.export.operations import INPUTS, described


@pytest.fixture(scope="module")
def feeds():
    return operations.feeds()


@pytest.mark.parametrize("exact, near", [(True, 2e-3), (False, 6e-3)])
def test_every_operation_is_the_one_that_was_described(exact, near, program, feeds):
    wanted = described(Plain(), {name: of.astype(np.float64) for name, of in feeds.items()})
    found = evaluate.run(program, "main", feeds, exact)
    assert found.keys() == wanted.keys()
    for name, of in wanted.items():
        assert found[name].dtype == (np.float64 if exact else np.float16)
        np.testing.assert_allclose(found[name], of, rtol=near, atol=near * np.abs(of).max(), err_msg=name)


def test_a_row_of_zeros_stays_one_and_a_large_one_does_not_overflow(program):
    feeds = {name: np.zeros((1, c, 1, s), np.float16) for name, (c, s) in INPUTS.items()}
    assert (evaluate.run(program, "main", feeds, exact=False)["norm"] == 0).all()
    feeds["x"] = np.full_like(feeds["x"], 9000)
    np.testing.assert_allclose(evaluate.run(program, "main", feeds, exact=False)["norm"], 1, rtol=2e-3)


def test_an_operation_of_which_nothing_is_known_is_named(program, feeds, monkeypatch):
    monkeypatch.delitem(evaluate.OPS, "erf")
    with pytest.raises(ValueError, match="is a erf, of which it is not known here what it computes"):
        evaluate.run(program, "main", feeds, exact=True)
