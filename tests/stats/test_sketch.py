"""The sketch against a slow count in plain Python, and its quantiles and shares against numpy."""

from math import frexp, isfinite, nextafter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from normscope.stats import Sketch
from normscope.terms.errors import DataError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**31), max_value=2.0**31)


def slow_bin(value: float) -> int:
    """The bin of a finite value other than 0: from DESIGN's words, without a look at its bits."""
    fraction, exponent = frexp(abs(value))  # value = fraction · 2^exponent, ½ ≤ fraction < 1
    octave, sixteenth = exponent - 1 + 32, int((2 * fraction - 1) * 16)
    return min(max(octave * 16 + sixteenth, 0), 1023) + 1024 * (value < 0)


def slow_sketch(values) -> Sketch:
    counts = np.zeros(2048, dtype=np.int64)
    for value in values:
        if isfinite(value) and value != 0:
            counts[slow_bin(value)] += 1
    apart = [values.count(0), sum(v != v for v in values), values.count(float("inf")), values.count(-float("inf"))]
    return Sketch(counts, *apart)


def bin_width(value):
    """The width of the bin that holds each value."""
    magnitude = np.abs(value)
    width = np.exp2(np.floor(np.log2(np.maximum(magnitude, 2.0**-32)))) / 16
    return np.where(magnitude == 0, 0, np.where(magnitude < 2.0**-32, 2.0**-32 * 17 / 16, width))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_edge_of_every_bin_parts_its_neighbours(dtype, device):
    """The edge belongs to the bin above it in magnitude, the number just before it to the bin below."""
    edges = [2.0**exponent * (1 + step / 16) for exponent in range(-160, 128) for step in range(16)]
    if dtype == torch.float64:
        edges += [2.0**exponent for exponent in range(-1074, 1024)]
        numbers = torch.tensor([near for edge in edges for near in (edge, nextafter(edge, 0))], dtype=dtype)
    else:
        exactly = torch.tensor(edges, dtype=torch.float64).to(dtype)
        numbers = torch.cat((exactly, torch.nextafter(exactly, torch.zeros_like(exactly))))
    numbers = torch.cat((numbers, -numbers)).to(device)
    assert Sketch.of(numbers) == slow_sketch(numbers.double().tolist())
    for number in numbers[::97]:
        assert Sketch.of(number) == slow_sketch([float(number)])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_power_of_two_on_its_own(dtype, device):
    info = torch.finfo(dtype)
    for exponent in range(-40, 40):
        for sign in (1, -1):
            if 2.0**exponent <= info.max and 2.0**exponent >= info.tiny:
                filled = np.flatnonzero(
                    Sketch.of(torch.tensor(sign * 2.0**exponent, dtype=dtype, device=device)).counts
                )
                assert filled.tolist() == [min(max((exponent + 32) * 16, 0), 1023) + 1024 * (sign < 0)]


@given(arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32)))
def test_any_float32_against_the_slow_count(data):
    assert Sketch.of(data) == slow_sketch(data.tolist())


@given(arrays(np.float64, st.integers(0, 60), elements=st.floats()))
def test_any_float64_against_the_slow_count(data):
    assert Sketch.of(data) == slow_sketch(data.tolist())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_zeros_and_what_is_not_finite_stand_apart(dtype):
    x = torch.tensor([0.0, -0.0, torch.nan, -torch.nan, torch.inf, -torch.inf, -torch.inf, 1.0, -1.0], dtype=dtype)
    sketch = Sketch.of(x)
    assert (sketch.zeros, sketch.nan, sketch.pos_inf, sketch.neg_inf) == (2, 2, 1, 2)
    assert sketch.total == 4 and sketch.nonfinite == 5 and sketch.zero_share == 0.5
    assert np.flatnonzero(sketch.counts).tolist() == [512, 1536]
    assert sketch.total + sketch.nonfinite == x.numel()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_integers_are_counted_by_their_value(dtype):
    x = torch.tensor([0, 1, 1, 3, 200]).to(dtype)
    assert Sketch.of(x) == slow_sketch(x.double().tolist())


def test_many_blocks_are_counted_once_each():
    x = torch.randn(300_001, generator=torch.Generator().manual_seed(0)).relu_()
    sketch = Sketch.of(x)
    assert sketch.total == x.numel() and sketch.zeros == int((x == 0).sum())
    assert Sketch.of(x[:131_000]) + Sketch.of(x[131_000:]) == sketch


def test_the_borders_ascend_and_frame_the_counts():
    edges, sketch = Sketch.edges(), Sketch.of(torch.tensor([-3.0, 0.0, 1.0, 1.0]))
    assert edges.shape == (2050,) and (np.diff(edges) >= 0).all() and np.count_nonzero(edges == 0) == 2
    assert (edges[0], edges[-1]) == (-(2.0**32), 2.0**32)
    ordered = sketch.ordered()
    assert ordered.shape == (2049,) and ordered.sum() == 4
    for value, count in ((-3.0, 1), (0.0, 1), (1.0, 2)):
        (cell,) = np.flatnonzero((ordered > 0) & (edges[:-1] <= value) & (value <= edges[1:]))
        assert ordered[cell] == count


@given(
    arrays(np.float32, st.integers(1, 200), elements=st.one_of(NUMBERS, st.just(np.float32(0.0)))),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_quantiles_are_within_a_bin_of_numpys(data, q):
    q = np.asarray(q)
    found, truth = Sketch.of(data).quantile(q), np.quantile(data.astype(np.float64), q)
    around = [np.quantile(data.astype(np.float64), q, method=method) for method in ("lower", "higher")]
    allowed = np.maximum(*(bin_width(value) for value in around))
    assert (np.abs(found - truth) <= allowed * (1 + 1e-9) + 1e-300).all()
    assert isinstance(Sketch.of(data).quantile(0.5), float)


def test_quantiles_of_a_normal_sample_are_close():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    q = np.linspace(0.01, 0.99, 99)
    assert np.abs(Sketch.of(x).quantile(q) - np.quantile(x.numpy(), q)).max() < 0.005  # a bin is up to 0.125 wide


def test_zeros_lie_between_the_signs():
    sketch = Sketch.of(torch.tensor([-2.0, -1.0] + [0.0] * 6 + [1.0, 2.0]))
    assert (sketch.quantile([0.3, 0.5, 0.7]) == 0).all()
    assert sketch.quantile(0.1) < 0 < sketch.quantile(0.9)
    assert [sketch.below(0), sketch.above(0)] == pytest.approx([0.2, 0.2])
    assert sketch.zero_share == 0.6


@given(arrays(np.float32, st.integers(1, 100), elements=NUMBERS), NUMBERS)
def test_shares_beyond_a_threshold_are_off_by_the_bin_it_falls_in_at_most(data, t):
    sketch = Sketch.of(data)
    same_bin = sum(slow_bin(v) == slow_bin(t) for v in data.tolist() if v and t)
    slack = same_bin / len(data) + 1e-12
    assert sketch.below(t) == pytest.approx((data < t).mean(), abs=slack)
    assert sketch.above(t) == pytest.approx((data > t).mean(), abs=slack)
    assert sketch.below(t) + sketch.above(t) <= 1 + 1e-12


def test_shares_at_a_border_are_exact():
    x = torch.cat((torch.linspace(-4, 4, 1001), torch.zeros(100)))
    sketch = Sketch.of(x)
    for t in (0.25, 0.5, 1.0, 1.5, 3.0):
        inside = ((x > -t) & (x < t)).double().mean().item()
        assert sketch.outside(-t, t) == pytest.approx(1 - inside, abs=1e-12)
        assert sketch.outside(high=t) == pytest.approx((x >= t).double().mean().item(), abs=1e-12)
        assert sketch.outside(low=-t) == pytest.approx((x <= -t).double().mean().item(), abs=1e-12)
    assert sketch.outside() == 0
    far = Sketch.of(torch.tensor([-1e20, 1e20]))
    assert [far.below(-1e30), far.below(-1e9), far.above(1e9), far.above(1e30)] == [0, 0.5, 0.5, 0]
    assert sketch.below(-1e30) == sketch.above(1e30) == 0 and sketch.below(1e30) == sketch.above(-1e30) == 1


def test_nothing_counted_gives_nan():
    for empty in (Sketch.empty(), Sketch.of(torch.tensor([torch.nan]))):
        assert np.isnan([empty.quantile(0.5), empty.below(0), empty.above(1), empty.outside(0, 1)]).all()
        assert np.isnan(empty.zero_share) and np.isnan(empty.quantile([0.1, 0.9])).all()


def test_a_share_outside_of_0_to_1_is_refused():
    with pytest.raises(DataError, match=r"q=1.5\n  because  a quantile belongs to a share"):
        Sketch.of(torch.ones(3)).quantile(1.5)
    with pytest.raises(DataError):
        Sketch.of(torch.ones(3)).quantile([0.5, float("nan")])


def test_only_filled_bins_are_stored():
    stored = Sketch.of(torch.ones(70_000)).to_arrays()
    assert stored["bins"].tolist() == [512] and stored["counts"].tolist() == [70_000]
    assert (stored["bins"].dtype, stored["counts"].dtype) == (np.uint16, np.uint32)
