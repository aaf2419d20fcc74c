"""Student's t against scipy."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from normscope.treat.interval import mean_interval, student_t


@given(st.integers(1, 300), st.floats(0.001, 0.9999))
def test_the_quantile_is_scipys(freedom, probability):
    assert student_t(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9, abs=1e-9)


@settings(max_examples=30)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_is_scipys(values, confidence):
    mean, low, high = mean_interval(values, confidence)
    error = stats.sem(values)
    if error == 0:
        assert low == pytest.approx(mean) and high == pytest.approx(mean)
        return
    wanted = stats.t.interval(confidence, len(values) - 1, loc=mean, scale=error)
    assert (low, high) == pytest.approx(wanted, rel=1e-8, abs=1e-8)


def test_one_value_or_none_bounds_nothing():
    assert mean_interval([0.3]) == (0.3, -math.inf, math.inf)
    assert mean_interval([1.0, math.nan])[1:] == (-math.inf, math.inf)
    assert math.isnan(mean_interval([])[0])
