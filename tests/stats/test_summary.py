"""Summaries: what a tensor amounts to, whole or sampled."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from normscope.stats import Moments, Sketch, Summary

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
SHAPES = [(3, 4, 5, 6), (200, 1000), (300_000,), (2, 3, 100_000), (7,), ()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_summary_is_moments_sketch_and_range_of_all_elements(shape, device):
    x = (torch.randn(shape, device=device) + 0.5).relu() * 3
    found, truth = Summary.of(x), x.double().cpu().numpy()
    assert found.size == found.moments.count == x.numel()
    assert found.mean == pytest.approx(truth.mean(), rel=1e-12)
    assert found.std == pytest.approx(truth.std(), rel=1e-12)
    assert found.rms == pytest.approx(np.sqrt(np.mean(truth**2)), rel=1e-12)
    assert (found.low, found.high) == (truth.min(), truth.max())
    assert found.sketch == Sketch.of(x)
    assert found.zero_share == pytest.approx((truth == 0).mean()) and found.nonfinite_share == 0
    assert found.channels is None


@pytest.mark.parametrize("axis", [1, -1, 0])
def test_channels_come_on_demand(axis):
    x = torch.randn(4, 5, 6)
    found = Summary.of(x, axis)
    assert found.channels == Moments.of(x, axis)
    assert found.mean == pytest.approx(float(found.channels.pooled().mean))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spoiled", [0, 5, 250_000, 299_999])
def test_what_is_not_finite_is_counted_and_otherwise_left_out(spoiled, device):
    x = torch.randn(300_000, device=device)
    x[spoiled] = torch.nan
    x[(spoiled + 10) % 300_000], x[(spoiled + 20) % 300_000] = torch.inf, -torch.inf
    found, kept = Summary.of(x), x[x.isfinite()].double().cpu().numpy()
    assert (found.sketch.nan, found.sketch.pos_inf, found.sketch.neg_inf) == (1, 1, 1)
    assert found.nonfinite_share == pytest.approx(1e-5)
    assert (found.size, found.moments.count) == (300_000, 299_997)
    assert found.mean == pytest.approx(kept.mean(), rel=1e-11) and found.std == pytest.approx(kept.std(), rel=1e-12)
    assert (found.low, found.high) == (kept.min(), kept.max())


def test_nothing_and_nothing_finite():
    nothing, nans = Summary.of(torch.empty(0, 3)), Summary.of(torch.full((4,), torch.nan))
    assert nothing == Summary.empty() and nothing.size == 0 and np.isnan(nothing.nonfinite_share)
    assert nans.size == 4 and nans.nonfinite_share == 1
    for one in (nothing, nans):
        assert np.isnan([one.mean, one.std, one.rms, one.low, one.high, one.zero_share, one.quantile(0.5)]).all()


def test_quantiles_stay_within_the_range():
    x = torch.full((1000,), 5.0)
    assert Summary.of(x).quantile(0.3) == 5.0
    found = Summary.of(torch.tensor([1e-20, 1.0, 3e12]))
    assert found.quantile(0) <= 1e-9 and found.quantile(1) > 1e12
    y = torch.rand(1000) * 0.01 + 100
    quantiles = Summary.of(y).quantile([0.0, 0.5, 1.0])
    assert float(y.min()) <= quantiles[0] <= quantiles[1] <= quantiles[2] <= float(y.max())


def test_a_summary_outlives_what_was_measured():
    x = torch.randn(100)
    found = Summary.of(x)
    told = found.to_arrays()
    x.zero_()
    assert Summary.from_arrays(told) == found and found.std > 0


def test_reading_summaries_loads_no_torch():
    code = (
        "import sys, numpy as np; from normscope.stats import DISTANCES, Summary; s = Summary.empty();"
        "s = Summary.from_arrays(s.to_arrays()) + s; s.quantile(0.5); [f(s, s) for f in DISTANCES.values()];"
        "assert not {'torch', 'scipy', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
