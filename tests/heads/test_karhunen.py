"""The closed form is as good as theory says it can be, and puts levels where the metric asks for them."""

import math

import numpy as np
import pytest

from heads import karhunen


def spread(rng, size):
    """A covariance."""
    axes = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return (axes * np.exp(rng.normal(size=size))) @ axes.T


def test_coefficients_are_uncorrelated_and_synthesis_undoes_analysis():
    rng = np.random.default_rng(0)
    covariance, root = spread(rng, 12), karhunen.root(spread(rng, 12), 0.1)
    found = karhunen.basis(covariance, root)
    np.testing.assert_allclose(found.analysis @ covariance @ found.analysis.T, np.diag(found.variance), atol=1e-9)
    np.testing.assert_allclose(found.synthesis @ found.analysis, np.eye(12), atol=1e-9)
    lengths = np.square(root @ found.synthesis).sum(0)
    np.testing.assert_allclose(lengths, 1)  # an error of a coefficient counts as much as itself in the metric
    assert (np.diff(found.variance) <= 0).all()


def test_a_root_times_itself_is_the_metric_and_its_floor():
    metric = spread(np.random.default_rng(1), 9)
    root = karhunen.root(metric, 0.3)
    np.testing.assert_allclose(root @ root, metric + 0.3 * np.trace(metric) / 9 * np.eye(9), atol=1e-9)


@pytest.mark.parametrize("count, least", [(2, 0.3634), (3, 0.1902), (4, 0.1175), (8, 0.03454), (32, 0.002499)])
def test_levels_are_nearly_as_good_as_any_can_be(count, least):
    """Max 1960, table 1: the least error of so many levels, for a normal distribution of variance 1."""
    assert least * 0.999 < karhunen.of(count)[1] < 1.12 * least


def test_a_bend_is_undone():
    for x in (-2.5, -0.1, 0.0, 1.7):
        assert karhunen.straight(math.erf(x / karhunen.WIDTH)) == pytest.approx(x)


@pytest.mark.parametrize("bits", [3, 7.5, 40, 100])
def test_levels_fit_and_no_other_split_of_the_bits_is_much_better(bits):
    variance = np.exp(np.linspace(3, -3, 20))
    levels = karhunen.levels(variance, bits)
    assert np.log2(levels).sum() <= bits
    assert (np.diff(levels) <= 0).all()

    def error(levels):
        return sum(v * (karhunen.of(n)[1] if n > 1 else 1) for v, n in zip(variance, levels, strict=True))

    even = np.full(20, max(1, int(2 ** (bits / 20))))
    assert error(levels) < error(even)
    floor = variance.min() / 1e6  # what the rate-distortion function allows: the water level that costs these bits
    for level in np.geomspace(floor, variance.max(), 20_000):
        if 0.5 * np.log2(np.maximum(variance / level, 1)).sum() <= bits:
            break
    bound = np.minimum(variance, level).sum()
    assert bound <= error(levels) * 1.001 and error(levels) < 2.75 * bound  # Panter and Dite: sqrt(3) pi / 2


def test_no_bits_are_no_levels():
    assert (karhunen.levels(np.ones(3), 0.5) == 1).all()
