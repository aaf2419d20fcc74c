"""Moments, sketches and summaries obey one algebra: whatever is merged, in any order, is what one pass would find."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from normscope.stats import Moments, Sketch, Summary
from normscope.terms.errors import ShapeError

KINDS = pytest.mark.parametrize("kind", [Moments, Sketch, Summary], ids=lambda kind: kind.__name__)
MEASURES = pytest.mark.parametrize(
    ("kind", "channel_axis"),
    [(Moments, None), (Moments, -1), (Sketch, None), (Summary, None), (Summary, -1)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
DATA = arrays(np.float32, st.tuples(st.integers(0, 30), st.just(3)), elements=st.floats(width=32))


def measure(kind, data, channel_axis):
    return kind.of(data) if channel_axis is None else kind.of(data, channel_axis)


def assert_close(a, b, *data):
    """The counts are equal, the means and M2 agree to rounding in float64 at the scale of the data."""
    everything = np.concatenate([part.ravel() for part in data]).astype(np.float64)
    scale = np.abs(everything[np.isfinite(everything)]).max(initial=0.0)
    tolerance = {"mean": 1e-13 * scale, "m2": 1e-12 * scale**2 * everything.size}
    left, right = a.to_arrays(), b.to_arrays()
    assert left.keys() == right.keys()
    for name, array in left.items():
        atol = tolerance.get(name.rpartition(".")[2], 0.0)
        np.testing.assert_allclose(array, right[name], rtol=0, atol=atol, equal_nan=True, err_msg=name)


@MEASURES
@given(a=DATA, b=DATA)
def test_merged_is_one_pass_over_the_joined_data(kind, channel_axis, a, b):
    merged = measure(kind, a, channel_axis).merge(measure(kind, b, channel_axis))
    assert_close(merged, measure(kind, np.concatenate((a, b)), channel_axis), a, b)


@MEASURES
@given(a=DATA, b=DATA)
def test_the_order_of_two_is_indifferent(kind, channel_axis, a, b):
    left, right = (measure(kind, data, channel_axis) for data in (a, b))
    assert_close(left + right, right + left, a, b)


@MEASURES
@given(a=DATA, b=DATA, c=DATA)
def test_the_grouping_of_three_is_indifferent(kind, channel_axis, a, b, c):
    one, two, three = (measure(kind, data, channel_axis) for data in (a, b, c))
    assert_close((one + two) + three, one + (two + three), a, b, c)


@MEASURES
@given(a=DATA)
def test_the_empty_one_changes_nothing(kind, channel_axis, a):
    value = measure(kind, a, channel_axis)
    assert value + kind.empty() == kind.empty() + value == value
    assert sum([value], kind.empty()) == sum([value]) == value


@MEASURES
@given(a=DATA)
def test_arrays_hold_everything(kind, channel_axis, a):
    value = measure(kind, a, channel_axis)
    told = {name: np.frombuffer(array.tobytes(), array.dtype) for name, array in value.to_arrays().items()}
    shapes = {name: array.shape for name, array in value.to_arrays().items()}
    again = kind.from_arrays({name: array.reshape(shapes[name]) for name, array in told.items()})
    assert again == value
    assert all(array.dtype.kind in "uif" and array.dtype.isnative for array in told.values())


@KINDS
def test_values_compare_copy_pickle_and_become_json(kind):
    value, other = kind.of(torch.arange(-5.0, 7.0)), kind.of(torch.arange(-5.0, 8.0))
    assert value != other and value != 3 and (value == other) is False
    assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == value
    assert json.loads(json.dumps(value.to_dict())) == value.to_dict() != other.to_dict()
    assert kind.__name__ in repr(value) and kind.__name__ in value._repr_html_()
    with pytest.raises(TypeError):
        value + 1
    with pytest.raises(TypeError):
        hash(value)


def test_channels_that_do_not_correspond_are_refused():
    with pytest.raises(ShapeError) as caught:
        Moments.of(torch.zeros(2, 3), 1) + Moments.of(torch.zeros(2, 4), 1)
    assert str(caught.value) == (
        "Moments of different shapes were asked to merge.\n"
        "  found    left=(3,), right=(4,)\n"
        "  because  each channel merges with the same channel of the other\n"
        "  do       merge their pooled() moments, or measure both along axes of one size"
    )


def test_channels_survive_only_where_both_sides_have_them():
    data = torch.randn(4, 3)
    with_channels, without = Summary.of(data, 1), Summary.of(data)
    assert (with_channels + with_channels).channels == Moments.of(torch.cat((data, data)), 1)
    assert (with_channels + without).channels is None
    assert (without + with_channels).channels is None
