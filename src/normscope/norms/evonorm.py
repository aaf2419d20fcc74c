"""Normalization and activation found together by search (Liu et al. 2020, "Evolving Normalization-Activation…")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.kernels.cells import cells
from normscope.kernels.reference import measure, root, wide
from normscope.norms.leaf import Proxy, leaf
from normscope.norms.module import register_state
from normscope.norms.sources import teach
from normscope.terms.catalog import CATALOG


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

    def forward(self, input: Tensor) -> Tensor:
        """The normalized and activated input."""
        if isinstance(input, Proxy):
            return leaf(self, input)
        view = cells(input, self._over_batch)
        x = view.split(wide(input))
        if self.training:
            seen = measure(input, self._over_batch)
            teach(dict(self.named_buffers()), self._over_batch, seen)
            var = seen.var
        else:
            var = view.along_channels(wide(self.get_buffer("running_var")))
        sample = root(measure(input, self._over_positions).var, self._over_positions)
        slope = view.along_channels(self.v) * x + sample
        sigma = root(var, self._over_batch)
        y = x / torch.where(slope > sigma, slope, sigma)  # as torch.maximum, whose gradient is slow
        y = y * view.along_channels(self.weight) + view.along_channels(self.bias)
        return view.join(y).to(input.dtype)


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

    def forward(self, input: Tensor) -> Tensor:
        """The normalized and activated input."""
        if isinstance(input, Proxy):
            return leaf(self, input)
        view = cells(input, self._over_group)
        x = view.split(wide(input))
        y = x * torch.sigmoid(view.along_channels(self.v) * x)
        y = y / root(measure(input, self._over_group).var, self._over_group)
        y = y * view.along_channels(self.weight) + view.along_channels(self.bias)
        return view.join(y).to(input.dtype)


def _register_affine(module: nn.Module, channels: int, device: Any, dtype: Any) -> None:
    for name, start in (("weight", 1.0), ("bias", 0.0), ("v", 1.0)):
        module.register_parameter(name, nn.Parameter(torch.full((channels,), start, device=device, dtype=dtype)))
