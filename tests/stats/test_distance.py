"""Distances against closed forms, numerical integrals and scipy."""

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from normscope.stats import (
    DISTANCES,
    Moments,
    Sketch,
    Summary,
    gaussian_kl,
    gaussian_wasserstein2,
    jensen_shannon,
    kolmogorov_smirnov,
    mean_shift,
    psi,
    std_shift,
    symmetric_kl,
    wasserstein1,
)

SKETCHED = [wasserstein1, jensen_shannon, psi, kolmogorov_smirnov]
SAMPLES = arrays(
    np.float32,
    st.integers(1, 80),
    elements=st.one_of(st.floats(-100, 100, width=32), st.just(np.float32(0.0))),
)


def gaussian(mean, std):
    return Moments(np.asarray(100.0), np.asarray(float(mean)), np.asarray(100.0 * std**2))


def widths(data):
    """How wide the bin of each value is, at most."""
    return np.maximum(np.abs(data.astype(np.float64)) / 16, 2.0**-31)


@pytest.mark.parametrize(("p", "q"), [((0, 1), (1, 2)), ((3, 0.1), (3, 0.1)), ((-2, 5), (7, 0.5)), ((0, 1e-9), (0, 1))])
def test_gaussian_distances_are_their_integrals(p, q):
    f, g = scipy.stats.norm(*p), scipy.stats.norm(*q)
    x = np.linspace(p[0] - 12 * p[1], p[0] + 12 * p[1], 200_001)
    kl = np.trapezoid(f.pdf(x) * (f.logpdf(x) - g.logpdf(x)), x)
    assert gaussian_kl(gaussian(*p), gaussian(*q)) == pytest.approx(kl, rel=1e-6, abs=1e-9)
    u = (np.arange(200_000) + 0.5) / 200_000
    w2 = np.sqrt(np.mean((f.ppf(u) - g.ppf(u)) ** 2))
    assert gaussian_wasserstein2(gaussian(*p), gaussian(*q)) == pytest.approx(w2, rel=1e-3, abs=1e-9)
    both = gaussian_kl(gaussian(*p), gaussian(*q)) + gaussian_kl(gaussian(*q), gaussian(*p))
    assert symmetric_kl(gaussian(*p), gaussian(*q)) == symmetric_kl(gaussian(*q), gaussian(*p)) == pytest.approx(both)


def test_moves_of_mean_and_deviation_by_hand():
    now, reference = gaussian(1, 3), gaussian(-3, 2)
    assert (mean_shift(now, reference), std_shift(now, reference)) == (2.0, 0.5)
    constant = gaussian(1, 0)
    assert mean_shift(now, constant) == std_shift(constant, constant) == 0.0
    assert mean_shift(reference, constant) == std_shift(now, constant) == np.inf
    assert std_shift(constant, now) == 1.0 and np.isnan(mean_shift(Moments.empty(), now))
    channels = Moments(np.full(2, 4.0), np.array([1.0, 2.0]), np.array([4.0, 16.0]))
    assert mean_shift(channels, channels).tolist() == [0.0, 0.0]


def test_gaussian_kl_by_hand():
    assert gaussian_kl(gaussian(1, 2), gaussian(0, 1)) == pytest.approx(2 - np.log(2))
    assert symmetric_kl(gaussian(1, 1), gaussian(0, 1)) == pytest.approx(1.0)


def test_channels_are_compared_one_by_one():
    x, y = torch.randn(50, 3), torch.randn(50, 3) * 2 + 1
    p, q = Moments.of(x, 1), Moments.of(y, 1)
    for distance in (gaussian_kl, symmetric_kl, gaussian_wasserstein2):
        alone = [distance(Moments.of(x[:, c]), Moments.of(y[:, c])) for c in range(3)]
        np.testing.assert_allclose(distance(p, q), alone)


def test_a_variance_of_zero_gives_the_limit_and_an_empty_side_nan():
    point, same, elsewhere, wide = gaussian(1, 0), gaussian(1, 0), gaussian(2, 0), gaussian(1, 1)
    for distance in (gaussian_kl, symmetric_kl):
        assert distance(point, same) == 0
        assert distance(point, elsewhere) == distance(point, wide) == distance(wide, point) == np.inf
        assert np.isnan(distance(point, Moments.empty())) and np.isnan(distance(Moments.empty(), wide))
    assert gaussian_wasserstein2(point, elsewhere) == 1 and gaussian_wasserstein2(point, wide) == 1
    assert np.isnan(gaussian_wasserstein2(point, Moments.empty()))


@given(SAMPLES, SAMPLES)
def test_wasserstein1_is_scipys_to_the_width_of_a_bin(a, b):
    truth = scipy.stats.wasserstein_distance(a, b)
    assert wasserstein1(Sketch.of(a), Sketch.of(b)) == pytest.approx(truth, abs=widths(a).mean() + widths(b).mean())


@pytest.mark.parametrize("seed", range(3))
def test_wasserstein1_of_real_sizes_is_close(seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(8192, generator=generator)
    b = (torch.randn(8192, generator=generator) * 1.5 + 0.3).relu_()
    truth = scipy.stats.wasserstein_distance(a.numpy(), b.numpy())
    assert wasserstein1(Sketch.of(a), Sketch.of(b)) == pytest.approx(truth, rel=0.01)


def test_wasserstein1_integrates_crossing_lines():
    """Mass of one bin against its two neighbours: F crosses G inside the bin; W₁ = Σ |quantile differences|."""
    middle, around = Sketch.of(torch.tensor([1.1, 1.1])), Sketch.of(torch.tensor([1.03, 1.15]))
    u = (np.arange(200_000) + 0.5) / 200_000
    p = 1.0625 + u / 16
    q = np.where(u < 0.5, 1 + u / 8, 1.125 + (u - 0.5) / 8)
    assert wasserstein1(middle, around) == pytest.approx(np.abs(p - q).mean(), rel=1e-6)


@given(SAMPLES, SAMPLES)
def test_jensen_shannon_is_scipys_on_the_same_bins(a, b):
    p, q = Sketch.of(a), Sketch.of(b)
    truth = scipy.spatial.distance.jensenshannon(p.ordered(), q.ordered(), base=2) ** 2
    assert jensen_shannon(p, q) == pytest.approx(truth, abs=1e-9)
    assert 0 <= jensen_shannon(p, q) <= 1


def test_jensen_shannon_of_strangers_is_one_bit():
    assert jensen_shannon(Sketch.of(torch.rand(99) + 1), Sketch.of(-torch.rand(55))) == pytest.approx(1.0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of scipy's p-value, for two samples that are equal
@given(SAMPLES, SAMPLES)
def test_kolmogorov_smirnov_is_scipys_to_what_a_bin_holds(a, b):
    p, q = Sketch.of(a), Sketch.of(b)
    truth = scipy.stats.ks_2samp(a, b, method="asymp").statistic
    held = max(p.ordered().max() / p.total, q.ordered().max() / q.total)
    assert truth - held - 1e-12 <= kolmogorov_smirnov(p, q) <= truth + 1e-12


def slow_psi(now, reference):
    """Deciles of the reference walked bin by bin; ½ added to each group that holds something."""
    groups, until = {}, 0
    for a, b in zip(now.ordered().tolist(), reference.ordered().tolist()):
        decile = min(int(10 * (until + b / 2) / reference.total), 9)
        until += b
        old = groups.get(decile, (0, 0))
        groups[decile] = (old[0] + a, old[1] + b)
    held = np.array([pair for pair in groups.values() if any(pair)], dtype=float) + 0.5
    a, b = (held / held.sum(0)).T
    return float(np.sum((a - b) * np.log(a / b)))


@given(SAMPLES, SAMPLES)
def test_psi_is_its_definition(a, b):
    p, q = Sketch.of(a), Sketch.of(b)
    assert psi(p, q) == pytest.approx(slow_psi(p, q), abs=1e-12)
    assert psi(p, q) >= 0


def test_psi_of_gaussians_is_the_textbook_number_and_noise_is_small():
    """Deciles of N(0, 1) against N(½, 1): the sum over ten groups with exact probabilities is 0.2472."""
    cuts = scipy.stats.norm.ppf(np.linspace(0, 1, 11))
    shares = np.diff(scipy.stats.norm.cdf(cuts - 0.5))
    exact = np.sum((shares - 0.1) * np.log(shares / 0.1))
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(200_000, generator=generator) for _ in range(2))
    assert psi(Sketch.of(one + 0.5), Sketch.of(other)) == pytest.approx(exact, rel=0.03)
    assert psi(Sketch.of(one[:8192]), Sketch.of(other[:8192])) < 0.01


def test_psi_sees_zeros_become_negative():
    generator = torch.Generator().manual_seed(0)
    rectified = torch.randn(4000, generator=generator).relu_()
    leaky = torch.where(rectified == 0, torch.tensor(-0.01), rectified)
    assert psi(Sketch.of(leaky), Sketch.of(rectified)) > 1


@pytest.mark.parametrize("distance", SKETCHED, ids=lambda distance: distance.__name__)
def test_sketch_distances_vanish_between_equals_and_are_nan_without_data(distance):
    sketch = Sketch.of(torch.randn(1000).relu_())
    assert distance(sketch, sketch) == 0
    for pair in ((sketch, Sketch.empty()), (Sketch.empty(), sketch), (Sketch.empty(), Sketch.empty())):
        assert np.isnan(distance(*pair))


def summary(mean=0.0, std=1.0, n=8192, seed=0):
    return Summary.of(torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * std + mean)


@pytest.mark.parametrize("name", DISTANCES)
def test_named_distances_take_summaries(name):
    distance = DISTANCES[name]
    assert isinstance(distance(summary(1, 1.2), summary()), float)
    assert distance(summary(1, 1.2), summary()) > 0.05 and distance(summary(), summary()) == 0
    nothing = [Summary.empty(), Summary.of(torch.full((3,), torch.nan))]
    assert np.isnan([distance(summary(), nothing[0]), distance(nothing[1], summary())]).all()


def test_the_names_are_those_of_the_record():
    assert set(DISTANCES) == {
        "shift",
        "mean_shift",
        "std_shift",
        "wasserstein1",
        "wasserstein2",
        "symmetric_kl",
        "jensen_shannon",
        "psi",
        "kolmogorov_smirnov",
    }


@pytest.mark.parametrize("std", [1e-30, 1e-12, 1e-3, 1.0, 1e6, 1e20])
@pytest.mark.parametrize("mean", [0, 1, 10, 15, 17, 1e4])
def test_a_shift_is_told_in_the_references_standard_deviations_at_any_scale(mean, std):
    reference = summary(mean * std, std, seed=1)
    assert DISTANCES["shift"](summary((mean + 2) * std, std, seed=2), reference) == pytest.approx(2, abs=0.1)
    assert DISTANCES["shift"](summary(mean * std, std, seed=2), reference) == pytest.approx(0, abs=0.06)
    wider = DISTANCES["shift"](summary(mean * std, 3 * std, seed=2), reference)
    assert 1.5 < wider < 2.1  # W₁ = 2·√(2/π) = 1.6; known by its moments alone it is 2


def test_no_distance_leaves_the_bounds_that_the_moments_set():
    """A move inside one bin is invisible to the sketch; the means tell it."""
    before = Summary.of(torch.tensor([1.0] * 99 + [100.0]))
    after = Summary.of(torch.tensor([1.05] * 99 + [100.0]))
    assert wasserstein1(after.sketch, before.sketch) == 0
    assert DISTANCES["wasserstein1"](after, before) == pytest.approx(0.0495, rel=1e-5)


def test_a_shift_away_from_a_constant():
    constant, other = Summary.of(torch.full((100,), 5.0)), Summary.of(torch.full((100,), 7.0))
    assert DISTANCES["shift"](constant, constant) == 0
    assert DISTANCES["shift"](other, constant) == np.inf
    assert DISTANCES["wasserstein1"](other, constant) == 2
    zeros = Summary.of(torch.zeros(100))
    assert DISTANCES["shift"](zeros, zeros) == 0 and DISTANCES["shift"](zeros, summary()) == pytest.approx(
        0.8, abs=0.02
    )
