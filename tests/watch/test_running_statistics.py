"""Running statistics: which are unusable, and how far they moved, by hand; the data are compared batch by batch."""

import numpy as np
import pytest
import torch
from torch import nn

from normscope.anatomy.batch import Probe
from normscope.terms.site import Site
from normscope.watch.fixed_batch import FixedBatch
from normscope.watch.measure import Scalar, measures_named
from normscope.watch.probes.running_statistics import broken, drift


def test_unusable_is_not_finite_negative_or_zero_where_the_channel_varies():
    mean = np.array([0.0, np.nan, 0.0, 0.0, 0.0, np.inf])
    variance = np.array([1.0, 1.0, -1.0, 0.0, 0.0, 1.0])
    deviation = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    assert broken(mean, variance, deviation) == pytest.approx(4 / 6)


def test_drift_is_the_mean_distance_in_deviations():
    then, now = (np.zeros(2), np.ones(2)), (np.array([3.0, 0.0]), np.array([25.0, 1.0]))
    assert drift(now, then, np.array([1.0, 2.0])) == pytest.approx(5.0 / 2)
    assert drift(now, then, np.array([0.0, 2.0])) == 0.0
    assert np.isnan(drift(now, then, np.zeros(2)))


def told(fixed, **more):
    readings = (one for one in fixed.run(0, **more) if isinstance(one, Scalar) and one.site is not None)
    return {(one.site.key, one.quantity): one.value for one in readings if one.site is not None}


def test_a_poisoned_norm_is_told_and_the_first_probe_is_where_it_starts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    fixed = FixedBatch(
        model, Probe.of(torch.randn(32, 4)), measures_named(["running_statistics"]).values(), loss_fn=None, seed=0
    )
    first = told(fixed)
    assert first["1:output", "running_broken"] == 0.0
    assert first["1:output", "running_drift"] == 0.0
    model[1].running_var[0] = -1.0
    model[1].running_mean += 1.0
    second = told(fixed)
    assert second["1:output", "running_broken"] == 0.25
    assert second["1:output", "running_drift"] > 0.5


def test_the_data_themselves_are_compared_without_any_norm():
    """Four samples against four others: the square of the distance of means over s²(1/4 + 1/4), by numpy."""
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(size=(4, 3)), generator.normal(size=(4, 3)) + 2
    model = nn.Linear(3, 2)
    fixed = FixedBatch(
        nn.Sequential(model),
        Probe.of(torch.tensor(ours, dtype=torch.float32)),
        measures_named(["batch_noise"]).values(),
        loss_fn=None,
        seed=0,
    )
    found = told(fixed, batch=Probe.of(torch.tensor(theirs, dtype=torch.float32)))
    within = (4 * ours.var(0) + 4 * theirs.var(0)) / 6
    expected = np.mean((ours.mean(0) - theirs.mean(0)) ** 2) / np.mean(within / 2)
    assert found[Site("").key, "batch_stat_excess"] == pytest.approx(expected, rel=1e-4)
