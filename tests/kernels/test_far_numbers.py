"""Fifty million numbers of mean 10⁴ and deviation 1 in one statistic: no sum of a kernel may be long in float32."""

from __future__ import annotations

import os

import pytest
import torch

import normscope as ns
from normscope.kernels import dispatch

pytest.importorskip("numba")
TIMES, BLOCK = 48, 1 << 20


@pytest.fixture(scope="module")
def numbers():
    """The numbers, and the exact mean and variance of what float32 holds of them."""
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 1 << 30:
        pytest.skip("200 MB in and 200 MB out want a gigabyte of free memory")
    torch.manual_seed(0)
    block = torch.randn(BLOCK) + 1e4
    return block.repeat(TIMES), block.double().mean(), block.double().var(correction=0)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (ns.NormSpec(over="NS", train_from="batch", infer_from="batch"), (TIMES, 1, BLOCK)),
        (ns.NormSpec(over="CS", train_from="input", infer_from="input", layout="channels_last"), (1, -1, 16)),
        (ns.NormSpec(over="CS", train_from="input", infer_from="input"), (1, 16, -1)),
    ],
    ids=["a channel of a batch", "a group, channels last", "a group"],
)
def test_mean_and_variance_are_those_of_float64(numbers, spec, shape):
    x, mean, var = numbers
    with ns.kernels.using("numba"), torch.no_grad():
        y, seen = dispatch.measured(x.view(shape), spec, None, None)
    assert (seen.mean - mean).abs().max() < 1e-6
    assert (seen.var / var - 1).abs().max() < 2e-6
    few = y.flatten()[:4096].double() - (x[:4096].double() - mean) / (var + spec.eps).sqrt()
    assert few.abs().max() < 2e-6


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("over", ["NS", "CS", "S"])
def test_a_gradient_along_the_output_vanishes(over, last):
    """x̂ cannot grow along itself: the gradient is x̂·eps/σ³, so that what float32 cannot hold of μ would be seen."""
    torch.manual_seed(0)
    source = "batch" if "N" in over else "input"
    spec = ns.NormSpec(over, source, source, affine=False, bias=False, groups=2 if "C" in over else 1)
    x = (torch.randn(16, 6, 12, 11, dtype=torch.float64) + 1e4).float()
    x = (x.to(memory_format=torch.channels_last) if last else x).requires_grad_()
    with ns.kernels.using("numba"):
        y = dispatch.normalized(x, spec, None, None)
    y.backward(y.detach())
    assert x.grad is not None
    assert x.grad.abs().max() < 8e-5
