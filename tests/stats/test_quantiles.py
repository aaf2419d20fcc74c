"""Quantiles of channels and the distances between them, against integrals solved by hand."""

import numpy as np
import pytest

from normscope.record.rows import read_summary, summary_row
from normscope.stats import PER_CHANNEL, Moments, Quantiles, Summary
from normscope.stats.quantiles import CHANNELS, LEVELS, jensen_shannon, psi, wasserstein1
from normscope.terms.site import Site

EVEN = np.linspace(0.0, 1.0, 201)[:, None]  # uniform on [0, 1], and its quantiles at every level are exact


def of(*columns):
    return Quantiles.of(np.concatenate(columns, axis=1))


def test_the_values_are_those_that_numpy_interpolates():
    rows = np.random.default_rng(0).normal(3.0, 2.0, (97, 5)).astype(np.float32)
    told = Quantiles.of(rows)
    np.testing.assert_allclose(told.values[0], np.quantile(rows, LEVELS, axis=0), rtol=1e-5)
    assert told.count.tolist() == [97] and told.channels == 5


def test_distances_of_even_distributions():
    now, reference = of(EVEN + 0.3, 2 * EVEN, EVEN, EVEN + 0.5), of(EVEN, EVEN, EVEN, EVEN)
    # ∫ |Q − Q'| : 0.3; ∫ q dq = 1/2; 0; 1/2
    assert wasserstein1(now, reference) == pytest.approx([0.3, 0.5, 0.0, 0.5], abs=1e-6)
    # The last: half of each lies where the other is not. The second: densities ½ on [0, 2] and 1 on [0, 1].
    twice = (0.5 * np.log2(0.5 / 0.75) + 0.5 + np.log2(1 / 0.75)) / 2
    first = (0.3 + 0.3) / 2
    assert jensen_shannon(now, reference) == pytest.approx([first, twice, 0.0, 0.5], abs=1e-5)
    # PSI of the last: nothing in five deciles, a tenth in four, six tenths in the last, each with half a count
    a, b = np.array([0] * 5 + [0.1] * 4 + [0.6]) * 201 + 0.5, np.full(10, 20.1) + 0.5
    a, b = a / a.sum(), b / b.sum()
    assert psi(now, reference)[3] == pytest.approx(((a - b) * np.log(a / b)).sum(), rel=1e-4)
    assert psi(now, reference)[2] == pytest.approx(0.0, abs=1e-9)


def test_points_of_mass_are_kept():
    clipped = np.maximum(np.linspace(-1.0, 1.0, 201), 0)[:, None]  # half of it is 0
    assert wasserstein1(of(clipped), of(0 * clipped)) == pytest.approx([0.25], abs=1e-6)
    half = (0.5 * np.log2(0.5 / 0.75) + 0.5 - np.log2(0.75)) / 2
    assert jensen_shannon(of(clipped), of(0 * clipped)) == pytest.approx([half], abs=0.01)
    zero, one = of(0 * EVEN), of(0 * EVEN + 1)
    assert jensen_shannon(zero, one) == [1.0] and wasserstein1(zero, one) == [1.0]
    assert psi(of(clipped), of(clipped)) == pytest.approx([0.0], abs=1e-9)


def test_samples_of_gaussians_are_nearly_as_far_apart_as_gaussians():
    chance = np.random.default_rng(1)
    rows = chance.normal(size=(512, 64)), chance.normal(1.0, 2.0, (512, 64))
    truth = np.abs(np.sort(rows[0], axis=0) - np.sort(rows[1], axis=0)).mean(0)  # ∫ |F − F'| of equal counts
    assert wasserstein1(*map(Quantiles.of, rows)) == pytest.approx(truth, rel=0.06)


def test_parts_merge_by_their_counts_in_any_order():
    parts = [Quantiles.of(EVEN[::2]), Quantiles.of(EVEN + 1), Quantiles.of(EVEN[:51] - 3)]
    told = (parts[0] + parts[1]).below(np.array([[1.0]]))
    assert told == pytest.approx(101 / 302)
    orders = [parts[0] + (parts[1] + parts[2]), (parts[0] + parts[1]) + parts[2], parts[2] + parts[0] + parts[1]]
    for distance in (wasserstein1, jensen_shannon, psi):
        found = [distance(whole, parts[0]) for whole in orders]
        assert found[0] == pytest.approx(found[1]) and found[0] == pytest.approx(found[2])
    assert wasserstein1(parts[0] + parts[0], parts[0]) == pytest.approx([0.0])


def test_channels_that_cannot_be_told_are_nan_and_many_are_thinned():
    rows = np.zeros((4, 3))
    rows[1, 1], rows[2, 2] = np.nan, -np.inf
    for distance in (wasserstein1, jensen_shannon, psi):
        found = distance(Quantiles.of(rows), Quantiles.of(rows))
        assert found[0] == 0 and np.isnan(found[1:]).all()
    wide = Quantiles.of(np.arange(4.0)[:, None] + np.zeros(2 * CHANNELS + 1))
    assert wide.values.shape[-1] <= CHANNELS
    found = wasserstein1(wide, Quantiles.of(np.zeros((4, 2 * CHANNELS + 1))))
    assert len(found) == 2 * CHANNELS + 1 and found[::3] == pytest.approx(1.5) and np.isnan(found[1::3]).all()


def test_a_summary_carries_them_to_the_record_and_back():
    rows = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    summary = Summary.of(rows, 1)
    both = Summary(**{**vars(summary), "quantiles": Quantiles.of(rows)})
    assert Summary.from_arrays(both.to_arrays()) == both
    row = summary_row(Site("a"), 0, "probe", both)
    _, _, size, *numbers = row.values
    assert read_summary(*numbers, size) == both
    assert (both + summary).quantiles is None and (both + both).quantiles is not None
    moved = Summary(**{**vars(both), "quantiles": Quantiles.of(rows + 1)})
    assert PER_CHANNEL["shift"](moved, both) == pytest.approx(1 / Moments.of(rows, 1).std, rel=1e-5)
    assert PER_CHANNEL["psi"](summary, both) is None
    with pytest.raises(ValueError, match="5 channels"):
        Quantiles.from_arrays({**both.quantiles.to_arrays(), "channels": np.array(5)})
