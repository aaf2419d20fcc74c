"""Layers whose output is the cosine of the angle between input and weight, in [−1, 1] (Luo et al. 2018)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.norms.leaf import Proxy, leaf
from normscope.norms.shapes import expect_floats
from normscope.terms.errors import ShapeError

_FLOOR = 1e-12  # of a length, so that the cosine with a vector of zeros is 0


class CosineLinear(nn.Linear):
    """``x·w / (‖x‖ ‖w‖)`` for (*, in) and every row w; the arguments of `torch.nn.Linear`, without a bias."""

    def __init__(self, in_features: int, out_features: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__(in_features, out_features, bias=False, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The cosines, (*, out)."""
        if isinstance(input, Proxy):
            return leaf(self, input)
        expect_floats(self, input)
        if input.ndim < 1 or input.shape[-1] != self.in_features:
            raise ShapeError(
                "CosineLinear was given vectors of another length than its weights.",
                found={"input": tuple(input.shape), "in_features": self.in_features},
                because="an angle is one between two vectors of the same space",
                do=f"pass (*, {self.in_features})",
            )
        unit = F.normalize(input, dim=-1, eps=_FLOOR), F.normalize(self.weight, dim=1, eps=_FLOOR)
        return F.linear(*unit).clamp(-1, 1)  # rounding may step over 1 by an ulp


class _CosineConv(nn.modules.conv._ConvNd):
    """The cosine of each patch of the input with each filter."""

    def forward(self, input: Tensor) -> Tensor:
        """The cosines, (N, out, *)."""
        if isinstance(input, Proxy):
            return leaf(self, input)
        expect_floats(self, input)
        if (
            input.ndim not in (self.weight.ndim - 1, self.weight.ndim)
            or input.shape[1 - self.weight.ndim] != self.in_channels
        ):
            raise ShapeError(
                f"{type(self).__name__} was given an input that it cannot read.",
                found={"input": tuple(input.shape), "in_channels": self.in_channels},
                because="an angle is one between a patch of the input and a filter of as many channels",
                do=f"pass (N, {self.in_channels}{', *' * (self.weight.ndim - 2)})",
            )
        fan_in = tuple(range(1, self.weight.ndim))
        length = torch.linalg.vector_norm(self.weight, dim=fan_in, keepdim=True).clamp(min=_FLOOR)
        y = self._conv_forward(input, self.weight / length, None)  # pyright: ignore[reportCallIssue]
        ones = torch.ones_like(self.weight[:: max(self.out_channels // self.groups, 1)])
        energy = self._conv_forward(input.square(), ones, None)  # pyright: ignore[reportCallIssue]
        patch = energy.clamp(min=_FLOOR**2).sqrt()
        return (y / patch.repeat_interleave(self.out_channels // self.groups, -self.weight.ndim + 1)).clamp(-1, 1)


class CosineConv1d(_CosineConv, nn.Conv1d):
    """The cosine of each patch with each filter; the arguments of `torch.nn.Conv1d`, without a bias."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"bias": False, **kwargs})


class CosineConv2d(_CosineConv, nn.Conv2d):
    """The cosine of each patch with each filter; the arguments of `torch.nn.Conv2d`, without a bias."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"bias": False, **kwargs})


class CosineConv3d(_CosineConv, nn.Conv3d):
    """The cosine of each patch with each filter; the arguments of `torch.nn.Conv3d`, without a bias."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"bias": False, **kwargs})
