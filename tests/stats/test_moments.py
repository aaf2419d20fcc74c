"""Moments against numpy in float64, over types, layouts, masks and hard numbers."""

import numpy as np
import pytest
import torch

from normscope.stats import Moments
from normscope.terms.errors import DataError, ShapeError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]


def assert_moments(found, values, axis=None, rtol=1e-12):
    values = np.asarray(values, dtype=np.float64)
    np.testing.assert_array_equal(found.count, np.sum(np.ones_like(values), axis=axis))
    np.testing.assert_allclose(found.mean, values.mean(axis), rtol=rtol, atol=1e-14)
    np.testing.assert_allclose(found.var, values.var(axis), rtol=rtol)
    assert all(part.dtype == np.float64 for part in found.to_arrays().values())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_is_measured_exactly(dtype, device):
    x = (torch.randn(40, 7, 11, device=device) * 20).abs().to(dtype)
    truth = x.double().cpu().numpy()
    assert_moments(Moments.of(x), truth)
    assert_moments(Moments.of(x, 1), truth, (0, 2))


@pytest.mark.parametrize("device", DEVICES)
def test_a_far_mean_costs_no_digits(device):
    x = torch.randn(4_000_000, device=device, generator=torch.Generator(device).manual_seed(0)).add_(1e4)
    truth = x.double().cpu().numpy()
    assert_moments(Moments.of(x), truth)
    assert_moments(Moments.of(x.view(-1, 4, 1000), channel_axis=1), truth.reshape(-1, 4, 1000), (0, 2))
    assert abs(float(Moments.of(x).var) - 1) < 0.01


def test_tiny_and_huge_numbers_keep_their_digits():
    for scale in (1e-38, 1e-30, 1e30):
        x = torch.randn(1000) * scale
        assert_moments(Moments.of(x), x.double().numpy())


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -3, -4])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced", "expanded"])
def test_every_axis_of_every_layout(axis, layout):
    x = torch.randn(6, 5, 4, 3)
    x = {
        "contiguous": lambda: x,
        "channels_last": lambda: x.to(memory_format=torch.channels_last),
        "permuted": lambda: x.permute(3, 1, 0, 2),
        "sliced": lambda: x[::2, 1:, :, ::2],
        "expanded": lambda: x[:, :1].expand(6, 5, 4, 3),
    }[layout]()
    others = tuple(other for other in range(4) if other != axis % 4)
    assert_moments(Moments.of(x, axis), x.double().numpy(), others)
    assert_moments(Moments.of(x, axis).pooled(), x.double().numpy())
    assert_moments(Moments.of(x), x.double().numpy())


def test_blocks_larger_than_the_cache_merge_right():
    x = torch.randn(3, 2, 300_001) + torch.arange(3.0)[:, None, None]
    assert_moments(Moments.of(x), x.double().numpy())
    assert_moments(Moments.of(x, 1), x.double().numpy(), (0, 2))
    assert_moments(Moments.of(x, 0), x.double().numpy(), (1, 2))


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_finite_is_left_out(device):
    x = torch.randn(50, 4, 6, device=device)
    x[3, 0, 2], x[4, 0, 1], x[5, 1, 0] = torch.nan, torch.inf, -torch.inf
    x[:, 3] = torch.nan
    found = Moments.of(x, 1)
    assert found.count.tolist() == [298, 299, 300, 0]
    for channel in range(3):
        kept = x[:, channel][x[:, channel].isfinite()].double().cpu().numpy()
        np.testing.assert_allclose(found.mean[channel], kept.mean(), rtol=1e-12)
        np.testing.assert_allclose(found.var[channel], kept.var(), rtol=1e-12)
    assert np.isnan(found.mean[3]) and found.m2[3] == 0 and np.isnan(found.var[3])
    kept = x[x.isfinite()].double().cpu().numpy()
    assert_moments(Moments.of(x), kept)
    assert_moments(found.pooled(), kept)


@pytest.mark.parametrize(
    ("shape", "axis", "mask"),
    [
        ((8, 3, 5), 1, (8, 5)),
        ((8, 3, 5), 1, (8, 1)),
        ((8, 3, 5), -2, (5,)),
        ((8, 5, 3), -1, (8, 5)),
        ((8, 3, 5), None, (8, 3, 5)),
        ((8, 3, 5), None, (3, 1)),
        ((8, 3), 0, (3,)),
    ],
)
def test_a_mask_says_what_is_counted(shape, axis, mask):
    x = torch.randn(shape)
    x[0, 0] = torch.nan
    keep = torch.rand(mask) < 0.6
    keep.view(-1)[0] = True
    found = Moments.of(x, axis, keep)
    assert Moments.of(x.numpy(), axis, keep.numpy()) == found
    rows = x[None] if axis is None else x.movedim(axis, 0)
    wide = np.broadcast_to(keep.numpy(), rows.shape[1:])
    for channel, row in enumerate(rows.double().numpy()):
        kept = row[wide & np.isfinite(row)]
        mine = Moments(*(np.atleast_1d(part)[channel] for part in (found.count, found.mean, found.m2)))
        assert mine.count == kept.size
        if kept.size:
            assert_moments(mine, kept)


def test_a_masked_permuted_tensor_keeps_its_elements_under_their_mask():
    x, keep = torch.randn(4, 5), torch.rand(4, 5) < 0.5
    assert_moments(Moments.of(x.T, mask=keep.T), x[keep].double().numpy())


def test_what_torch_and_numpy_call_variance():
    x = torch.randn(9, 4)
    found = Moments.of(x, 1)
    np.testing.assert_allclose(found.var, x.double().var(0, unbiased=False))
    np.testing.assert_allclose(found.unbiased_var, x.double().var(0))
    np.testing.assert_allclose(found.std, x.double().std(0, unbiased=False))


def test_one_element_none_and_empty_shapes():
    one = Moments.of(torch.tensor(3.0))
    assert (one.count, one.mean, one.m2) == (1, 3, 0) and one.var == 0 and np.isnan(one.unbiased_var)
    for empty in (Moments.of(torch.empty(0)), Moments.of(np.empty((3, 0))), Moments.empty()):
        assert empty.count == 0 and np.isnan(empty.mean) and np.isnan(empty.var)
    assert Moments.of(torch.empty(0, 3), 1) == Moments.empty((3,))
    assert Moments.of(torch.empty(3, 0), 1).count.shape == (0,)
    assert Moments.of(torch.tensor([1.0, 2.0]), 0).mean.tolist() == [1, 2]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4)[::-1],
        np.arange(12, dtype=">f4"),
        np.arange(12, dtype=np.float16),
        np.broadcast_to(np.float32(2.5), (3, 3)),
        [1, 2, 3.5],
        2.5,
    ],
    ids=["reversed", "big-endian", "half", "read-only", "list", "number"],
)
def test_numpy_arrays_of_every_kind(array):
    assert_moments(Moments.of(array), np.asarray(array, dtype=np.float64))


def test_sparse_gradients_and_graphs():
    x = torch.randn(5, 3, requires_grad=True)
    assert Moments.of(x * 1) == Moments.of(x.detach())
    assert Moments.of(torch.eye(4).to_sparse()) == Moments.of(torch.eye(4))


def test_autocast_and_inference_mode_change_nothing():
    x = torch.randn(200, 30)
    truth = Moments.of(x, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Moments.of(x, 1) == truth
    with torch.inference_mode():
        assert Moments.of(x, 1) == truth


def test_bad_input_is_told_in_four_lines():
    with pytest.raises(
        ShapeError, match=r"along axis 2\.\n  found    shape=\(3, 4\)\n  because  the tensor has 2 axes"
    ):
        Moments.of(torch.zeros(3, 4), 2)
    with pytest.raises(ShapeError, match=r"mask=\(3,\), x=\(3, 4\), channel_axis=0\n.*\n  do       give .* \(4,\)"):
        Moments.of(torch.zeros(3, 4), 0, torch.ones(3, dtype=torch.bool))
    with pytest.raises(DataError, match=r"dtype=torch.complex64, shape=\(3,\)"):
        Moments.of(torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(DataError, match="something else than numbers"):
        Moments.of(np.array(["a", "b"]))
