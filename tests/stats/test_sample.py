"""The strided sample: which elements it takes, of every layout, and whom it misses."""

from math import gcd, prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normscope.stats import strided
from normscope.stats.sample import stride, widest_gap

SHAPES = [(32, 64, 56, 56), (8, 3, 224, 224), (64, 512), (16, 128, 768), (100_003,), (4096, 4096), (256, 256, 3, 3)]


@pytest.mark.parametrize("shape", [*SHAPES, (8192,), (8193,), (16_384,), (5,), (), (0, 3)], ids=str)
def test_it_takes_few_elements_each_once_the_same_every_time(shape):
    x = torch.arange(prod(shape), dtype=torch.int32).view(shape)
    taken = strided(x)
    assert taken.ndim == 1 and taken.numel() <= 8192
    assert taken.unique().numel() == taken.numel()
    assert torch.equal(taken, strided(x))
    assert taken.numel() == x.numel() if x.numel() <= 8192 else taken.numel() > 8192 / 4
    if x.numel() > 20 * 8192:
        assert taken.numel() > 0.85 * 8192


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_stride_shares_no_factor_with_any_size(shape):
    step = stride(shape[::-1], 8192)
    assert all(gcd(step, size) == 1 for size in shape)


def test_a_dense_tensor_gives_a_view():
    x = torch.randn(16, 32, 14, 14)
    for dense in (x, x.to(memory_format=torch.channels_last), x.permute(3, 0, 2, 1), x[3:9], x.requires_grad_()):
        taken = strided(dense, 1000)
        assert taken.untyped_storage().data_ptr() == dense.untyped_storage().data_ptr()
        assert not taken.requires_grad


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x[:, ::2],
        lambda x: x[:, :, 1:],
        lambda x: x[:1].expand(16, -1, -1, -1),
        lambda x: x.sum().expand(16, 32, 14, 14),
        lambda x: x.unfold(2, 3, 1),
    ],
    ids=["skipping", "cropped", "expanded", "one number", "overlapping"],
)
def test_gaps_and_overlaps_are_read_in_index_order(make):
    x = make(torch.arange(16 * 32 * 14 * 14.0).view(16, 32, 14, 14))
    step = stride(tuple(x.shape[::-1]), 1000)
    assert torch.equal(strided(x, 1000), x.reshape(-1)[::step])


def test_a_sparse_gradient_is_sampled_with_its_zeros():
    layer = torch.nn.Embedding(1000, 8, sparse=True)
    layer(torch.tensor([1, 5])).sum().backward()
    assert torch.equal(strided(layer.weight.grad), layer.weight.grad.to_dense().view(-1))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", [(32, 64, 56, 56), (16, 512, 28, 28), (64, 64, 32, 32), (2, 256, 64, 64)], ids=str)
def test_no_channel_row_or_column_is_missed(shape, layout):
    """Every channel, row, column and image is met, none more than a little oftener than its share."""
    axes = torch.meshgrid(*(torch.arange(size, dtype=torch.int16) for size in shape), indexing="ij")
    for axis, places in enumerate(axes):
        memory = torch.channels_last if layout == "NHWC" else torch.contiguous_format
        met = np.bincount(strided(places.contiguous(memory_format=memory)).numpy(), minlength=shape[axis])
        mean = met.sum() / shape[axis]
        assert met.min() >= np.floor(0.5 * mean) and met.max() <= np.ceil(1.5 * mean), (axis, met)


@given(st.integers(1, 60), st.integers(1, 200), st.integers(1, 80))
def test_the_widest_gap_is_that_of_the_places_laid_out(period, step, steps):
    places = sorted({index * step % period for index in range(steps)})
    gaps = np.diff([*places, places[0] + period])
    assert widest_gap(step, period, steps) == gaps.max()


def test_a_coprime_stride_close_to_a_multiple_of_the_plane_is_not_taken():
    """2¹⁵ + 1 is co-prime to (64, 64, 256, 256), yet it meets an eighth of every plane's rows in two bands only."""
    sizes, plane = (256, 256, 64, 64), 65_536
    assert widest_gap(2**15 + 1, plane, 8192) > plane / 3
    step = stride(sizes, 8192)
    assert widest_gap(step, plane, -(-prod(sizes) // step)) < 40


@pytest.mark.parametrize("period", [2, 3, 7, 8, 64, 100, 128, 1000, 1024, 3136])
def test_statistics_of_a_periodic_pattern_are_unbiased(period):
    """A wave along memory, of a period that divides a size: mean and variance are those of all elements."""
    x = torch.sin(torch.arange(period, dtype=torch.float64) * (2 * torch.pi / period) + 0.3)
    x = x.repeat(-(-2_000_000 // period))[: 64 * (2_000_000 // 64 // period * period or period)]
    tensor = x[: x.numel() // period * period].view(-1, period)
    taken = strided(tensor)
    assert float(taken.mean()) == pytest.approx(float(tensor.mean()), abs=0.02)
    assert float(taken.var()) == pytest.approx(float(tensor.var()), rel=0.03)


def test_the_stride_is_chosen_for_the_order_in_memory():
    x = torch.arange(64 * 96 * 96 * 3).view(64, 96, 96, 3).permute(0, 3, 1, 2)  # (N, C, H, W), channels last
    step = stride((3, 96, 96, 64), 8192)
    assert step != stride((96, 96, 3, 64), 8192)
    assert torch.equal(strided(x), torch.arange(0, x.numel(), step))


def test_no_random_state_is_used():
    before = torch.get_rng_state()
    strided(torch.arange(100_000.0))
    assert torch.equal(before, torch.get_rng_state())
