"""Normalization and activation found together by search (Liu et al. 2020, "Evolving Normalization-Activation…")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.kernels.cells import cells, counted, each
from normscope.kernels.reference import measure, merged, root, wide
from normscope.norms.leaf import Proxy, leaf
from normscope.norms.module import register_state
from normscope.norms.shapes import expect_channels
from normscope.norms.sources import teach
from normscope.terms.catalog import CATALOG
from normscope.terms.spec import NormSpec


class EvoNormB0(nn.Module):
    """``g · x / max(√var_batch, v·x + √var_sample) + b`` for (N, C, *) (table 2, B0).

    Args:
        num_channels: C.
        eps: added to each variance.
        momentum: the weight of the newest batch in the running variance.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
    """

    weight: Tensor
    bias: Tensor
    v: Tensor

    def __init__(
        self, num_channels: int, eps: float = 1e-5, momentum: float = 0.1, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self._over_batch = CATALOG["BatchNorm"].but(eps=eps, momentum=momentum)
        self._over_positions = CATALOG["InstanceNorm"].but(eps=eps)
        _register_affine(self, num_channels, device, dtype)
        register_state(self, self._over_batch, num_channels, device, dtype)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalized and activated input; mask (N, *S), or lengths (N,): other cells pass unchanged."""
        if isinstance(input, Proxy):
            return leaf(self, input, mask)
        expect_channels(self, input, len(self.weight))
        view = cells(input, self._over_batch)
        x, mask = _counted(view.split(wide(input)), input, self._over_batch, mask)
        seen = measure(input, self._over_positions, mask)
        if self.training:
            batch = merged(seen, 0) if mask is None else measure(input, self._over_batch, mask)
            teach(dict(self.named_buffers()), self._over_batch, batch)
            var = batch.var
        else:
            var = view.along_channels(wide(self.get_buffer("running_var")))
        sample, floor = root(seen.var, self._over_positions), root(var, self._over_batch)
        v, weight, bias = (each(wide(value), sample, view) for value in (self.v, self.weight, self.bias))
        # max(v·x + sample, floor) as relu(v·x + sample − floor) + floor: two passes, and two back
        sigma = torch.relu(torch.addcmul(sample - floor, x, v)) + floor.expand_as(sample)
        y = view.join(torch.addcmul(bias, x / sigma, weight)).to(input.dtype)
        return y if mask is None else torch.where(mask.unsqueeze(1), y, input)


class EvoNormS0(nn.Module):
    """``g · x · sigmoid(v·x) / √var_group + b`` for (N, C, *) (table 2, S0).

    Args:
        num_channels: C.
        num_groups: into how many groups the channels are split.
        eps: added to the variance.
        device: of parameters.
        dtype: of parameters.

    Raises:
        ShapeError: the channels do not split into the groups.
    """

    weight: Tensor
    bias: Tensor
    v: Tensor

    def __init__(
        self, num_channels: int, num_groups: int = 32, eps: float = 1e-5, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self._over_group = CATALOG["GroupNorm"].but(groups=num_groups, eps=eps)
        cells(torch.empty(1, num_channels), self._over_group)
        _register_affine(self, num_channels, device, dtype)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalized and activated input; mask (N, *S), or lengths (N,): other cells pass unchanged."""
        if isinstance(input, Proxy):
            return leaf(self, input, mask)
        expect_channels(self, input, len(self.weight))
        view = cells(input, self._over_group)
        x, mask = _counted(view.split(wide(input)), input, self._over_group, mask)
        sigma = root(measure(input, self._over_group, mask).var, self._over_group)
        v, weight, bias = (each(wide(value), sigma, view) for value in (self.v, self.weight, self.bias))
        y = view.join(torch.addcmul(bias, x * torch.sigmoid(v * x), weight / sigma)).to(input.dtype)
        return y if mask is None else torch.where(mask.unsqueeze(1), y, input)


def _counted(x: Tensor, input: Tensor, spec: NormSpec, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The split `x` with zeros where `mask`, now (N, *S), is False: what stands there must not reach the gradient."""
    if mask is None:
        return x, None
    mask = counted(input, spec, mask)
    return torch.where(mask[:, None, None], x, 0.0), mask


def _register_affine(module: nn.Module, channels: int, device: Any, dtype: Any) -> None:
    for name, start in (("weight", 1.0), ("bias", 0.0), ("v", 1.0)):
        module.register_parameter(name, nn.Parameter(torch.full((channels,), start, device=device, dtype=dtype)))
