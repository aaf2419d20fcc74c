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
