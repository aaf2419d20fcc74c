"""Batch norm with running statistics is torch's, bit for bit, and a batch that is not finite teaches nothing."""

import pytest
import torch

import normscope as ns


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_gradients_and_buffers_are_torchs_bit_for_bit(dtype):
    torch.manual_seed(0)
    ours, torchs = ns.nn.BatchNorm2d(6, dtype=dtype), torch.nn.BatchNorm2d(6, dtype=dtype)
    for scale in (1.0, 100.0, 1e-3):
        x = (torch.randn(5, 6, 7, 3, dtype=dtype) * scale).requires_grad_()
        outputs = [layer(x) for layer in (ours, torchs)]
        gradients = [
            torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
            for y, layer in zip(outputs, (ours, torchs), strict=True)
        ]
        assert torch.equal(*outputs)
        assert all(map(torch.equal, *gradients))
    for name, buffer in torchs.named_buffers():
        assert torch.equal(buffer, getattr(ours, name)), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_batch_that_is_not_finite_teaches_nothing_and_is_counted(bad):
    torch.manual_seed(0)
    layer = ns.nn.BatchNorm1d(4)
    layer(torch.randn(8, 4))
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    x = torch.randn(8, 4)
    x[2, 1] = bad  # 1e30 is finite, its variance in float32 is not
    layer(x)
    assert torch.equal(layer.running_mean, before["running_mean"])
    assert torch.equal(layer.running_var, before["running_var"])
    assert layer.num_batches_tracked == before["num_batches_tracked"] == 1
    assert layer.num_batches_skipped == 1


def test_large_statistics_whose_product_overflows_are_learned_all_the_same():
    layer, torchs = ns.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    for step in range(3):
        x = torch.tensor([[1.0, 3.0], [2.0, 5.0], [4.0, -1.0]]) * 1e16 + step + 1e17
        torch.testing.assert_close(layer(x), torchs(x))
    assert layer.running_mean.isfinite().all() and layer.running_var.isfinite().all()
    assert not torch.dot(layer.running_mean, layer.running_var).isfinite()
    torch.testing.assert_close(layer.running_mean, torchs.running_mean)
    assert layer.num_batches_skipped == 0


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("shape", [(65_536, 2), (16, 2, 64, 64)], ids=str)
def test_many_numbers_far_from_zero_are_told_apart_where_channels_lie_side_by_side(shape, kept):
    """ATen's sum of a channel in one float32 is off by three deviations there; its output is not ours."""
    torch.manual_seed(0)
    layer, exact = (ns.nn.BatchNorm1d if len(shape) == 2 else ns.nn.BatchNorm2d)(2, track_running_stats=kept), None
    x = torch.randn(shape) + 1e4
    x = x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x
    exact = type(layer)(2, track_running_stats=kept, dtype=torch.float64)
    x.requires_grad_()
    wide, upstream = x.detach().double().requires_grad_(), torch.randn(shape)
    y, truth = layer(x), exact(wide)
    torch.testing.assert_close(y.double(), truth, rtol=0, atol=2e-3)
    assert y.stride() == x.stride()
    y.backward(upstream)
    truth.backward(upstream.double())
    torch.testing.assert_close(x.grad.double(), wide.grad, rtol=0, atol=1e-2)
    if kept:
        torch.testing.assert_close(layer.running_var.double(), exact.running_var, rtol=1e-4, atol=0)
        torch.testing.assert_close(layer.running_mean.double(), exact.running_mean, rtol=1e-6, atol=0)
        assert layer.num_batches_tracked == 1 and layer.num_batches_skipped == 0
