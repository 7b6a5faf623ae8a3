"""Every example is drawn once an epoch, and every host draws its own share of the same rows."""

from collections import Counter

import numpy as np
import pytest

from agp.packing import Mixture, Stream, alike, assemble, drawn, pack
from agp.supervise import Example


def examples(sizes, first=1):
    return [
        Example(f"r{i}", np.arange(first, first + n, dtype=np.int32), np.arange(n) > 0) for i, n in enumerate(sizes)
    ]


SIZES = np.random.default_rng(0).integers(2, 60, 200).tolist()


def test_packed_rows_hold_every_example_once_and_little_else():
    rows = pack(examples(SIZES), 64, seed=0)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert all(sum(SIZES[i] for i in row) <= 64 for row in rows)
    assert sum(SIZES) / (64 * len(rows)) > 0.95


def test_rows_of_a_batch_are_of_like_length():
    rows = alike(examples(SIZES), 4, seed=0)
    assert sorted(i for row in rows for i in row) == list(range(200))
    spread = [np.ptp([SIZES[rows[at + k][0]] for k in range(4)]) for at in range(0, 200, 4)]
    assert max(spread) <= 4


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("together", [1, 4, 7])
def test_an_epoch_draws_everything_once_and_each_in_another_order(packed, together):
    stream = Stream(examples(SIZES), 64, packed, together, seed=1)
    n = len(stream.rows)
    epochs = [[tuple(e.place for e in stream.row(epoch * n + i)) for i in range(n)] for epoch in range(3)]
    assert all(Counter(p for row in rows for p in row) == Counter(f"r{i}" for i in range(200)) for rows in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_sources_are_drawn_as_often_as_they_weigh():
    streams = {name: Stream(examples([5] * 40, first), 5, True, 2, seed=0) for name, first in (("a", 1), ("b", 100))}
    mixture = Mixture(streams, {"a": 3.0, "b": 1.0}, together=2, seed=0)
    seen = [mixture.row(i)[0] for i in range(2000)]
    of_a = [e for e in seen if e.ids[0] == 1]
    assert len(of_a) == 1500
    assert set(Counter(e.place for e in of_a).values()) <= {37, 38}  # no row is drawn again before all are
    assert all(seen[i].ids[0] == seen[i + 1].ids[0] for i in range(0, 2000, 2))


def test_a_batch_learns_the_token_after_and_never_across_documents():
    one, other = examples([4, 3])
    batch = assemble([[one, other], [examples([3], 50)[0]]])
    assert batch.tokens.shape == (2, 32)
    assert batch.tokens[0, :8].tolist() == [1, 2, 3, 4, 1, 2, 3, 0]
    assert batch.documents[0, :8].tolist() == [1, 1, 1, 1, 2, 2, 2, 0]
    assert batch.where[:7].tolist() == [0, 1, 2, 4, 5, 32, 33] and batch.targets[:7].tolist() == [2, 3, 4, 2, 3, 51, 52]
    assert batch.weights.sum() == 7 and batch.weights[:7].all() and batch.where.shape == (32,)


@pytest.mark.parametrize("packed", [True, False])
def test_two_hosts_draw_together_what_one_draws(packed):
    def share(rows, rank, size, accumulate=2):
        stream = Stream(examples(SIZES), 64, packed, 4, seed=2)
        of = drawn(Mixture({"a": stream}, {"a": 1.0}, 4, seed=2), rows, accumulate, rank, size)
        return [sorted(row[0].place for row in of(step, micro)) for step in (1, 9) for micro in (0, 1)]

    alone, first, second = share(4, 0, 1), share(2, 0, 2), share(2, 1, 2)
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == alone


def test_a_weight_that_means_never_is_refused():
    streams = {name: Stream(examples([5] * 4), 5, True, 1, seed=0) for name in "ab"}
    with pytest.raises(ValueError, match="the weights of b are below a 2000th of all"):
        Mixture(streams, {"a": 1.0, "b": 1e-4}, together=1, seed=0)


def test_a_source_without_rows_is_refused():
    with pytest.raises(ValueError, match="no rows left"):
        Stream([], 64, True, 1, 0)
