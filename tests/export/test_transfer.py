"""As arithmetic on columns, the transfer adapter sends the codes it sends in MLX, and restores the same."""

import numpy as np
import pytest

from export import transfer as described
from export.ops import Plain
from tests.export.columns import columns, rows
from tests.heads.test_transfer import made


@pytest.mark.parametrize("span", [(-1.5, 1.5), (-0.3, 0.4)])
def test_the_same_codes_are_sent(span):
    """Also where a state is larger or smaller than any that it learned from. Ties aside, of which there are few."""
    head, states, told = made(size=12, told_share=0.5, span=span)
    size, level = described.sent(Plain(), head, "4x", columns(states), columns(told))
    count = np.array(head.config.levels)
    codes = described.rounded(rows(level), count) + (count - 1) / 2
    wanted, found = np.array(head.codes(states, told)), np.concatenate([rows(size), codes], axis=1)
    near = np.abs(rows(level) + (count - 1) / 2 - np.floor(rows(level) + (count - 1) / 2) - 0.5) < 1e-3
    same = wanted == found
    assert same[:, 0].all() or (~same[:, 0]).mean() < 0.005
    assert (same[:, 1:] | near)[same[:, 0]].all() and near.mean() < 0.005
    assert len(set(wanted[:, 0].tolist())) > 5


def test_the_same_state_is_restored():
    head, states, told = made(size=12, told_share=0.5)
    codes = head.codes(states, told)
    count = np.array(head.config.levels)
    level = np.array(codes[:, 1:]) - (count - 1) / 2
    values, size = described.values(level, count), described.size(np.array(codes[:, :1]), np.array(head.span))
    found = described.received(Plain(), head, columns(size), columns(values), columns(told))
    np.testing.assert_allclose(rows(found), np.array(head.restored(codes, told)), rtol=1e-4, atol=1e-4)


def test_a_state_of_zeros_has_the_smallest_size():
    head, _, told = made(size=12)
    size, level = described.sent(Plain(), head, "4x", columns(np.zeros((2, 24))), columns(told[:2]))
    assert (size == 0).all() and np.isfinite(level).all()
