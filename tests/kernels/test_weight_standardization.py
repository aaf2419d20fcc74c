"""Standardized weights by the kernel of rows: one pass there, one back, whatever the layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import normscope as ns

pytest.importorskip("numba")


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 10, 3), nn.Linear(37, 5)], ids=["convolution", "linear"])
def test_the_kernel_standardizes_as_the_formula_does(layer):
    found = []
    for name, dtype in (("numba", torch.float32), ("reference", torch.float64)):
        torch.manual_seed(0)
        other = type(layer)(6, 10, 3) if isinstance(layer, nn.Conv2d) else nn.Linear(37, 5)
        other.load_state_dict(layer.state_dict())
        ns.nn.weight_standardization(other.to(dtype))
        with ns.kernels.using(name):
            weight = other.weight
            (weight * torch.linspace(-1, 1, weight.numel(), dtype=dtype).view_as(weight)).sum().backward()
        found.append((weight.detach(), other.parametrizations.weight.original.grad))
    for value, truth in zip(*found, strict=True):
        assert (value - truth).abs().max() <= 2e-6 * truth.abs().max()
