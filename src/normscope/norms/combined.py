"""Norms made of several: a learned mixture, and one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.kernels.cells import cells, each
from normscope.kernels.reference import Statistics, measure, merged, root, scale_and_shift, wide
from normscope.norms.leaf import Proxy, leaf
from normscope.norms.module import Norm, register_state
from normscope.norms.shapes import expect_channels
from normscope.norms.sources import teach
from normscope.terms.catalog import CATALOG


class SwitchableNorm(nn.Module):
    """A learned mixture of instance, layer and batch statistics for (N, C, *) (Luo et al. 2019).

    ``mean_weight`` and ``var_weight`` hold the logits of instance, layer and batch, in this order. At inference the
    batch's share comes from the running statistics.

    Args:
        num_channels: C.
        eps: the guard of the division.
        momentum: the weight of the newest batch in the running statistics.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
    """

    def __init__(
        self, num_channels: int, eps: float = 1e-5, momentum: float = 0.1, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self._instance, self._layer, self._batch = (
            CATALOG[name].but(eps=eps, groups=1) for name in ("InstanceNorm", "GroupNorm", "BatchNorm")
        )
        self._batch = self._batch.but(momentum=momentum)
        self.weight = nn.Parameter(torch.ones(num_channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_channels, device=device, dtype=dtype))
        self.mean_weight = nn.Parameter(torch.zeros(3, device=device, dtype=dtype))
        self.var_weight = nn.Parameter(torch.zeros(3, device=device, dtype=dtype))
        register_state(self, self._batch, num_channels, device, dtype)

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalized input."""
        if isinstance(input, Proxy):
            return leaf(self, input, mask)
        expect_channels(self, input, len(self.weight))
        instance = measure(input, self._instance, mask)
        three = [instance, self._of_layer(instance, input, mask), self._of_batch(instance, input, mask)]
        mean = sum(share * seen.mean for share, seen in zip(self.mean_weight.softmax(0), three, strict=True))
        var = sum(share * seen.var for share, seen in zip(self.var_weight.softmax(0), three, strict=True))
        assert isinstance(mean, Tensor) and isinstance(var, Tensor)
        sigma = root(var, self._batch)
        if mask is not None:
            return scale_and_shift(input, self._batch, mean, sigma, self.weight, self.bias, mask)
        view = cells(input, self._batch)
        weight, bias = (each(wide(value), sigma, view) for value in (self.weight, self.bias))
        return view.join(torch.addcmul(bias, view.split(wide(input)) - mean, weight / sigma)).to(input.dtype)

    def _of_layer(self, instance: Statistics, input: Tensor, mask: Tensor | None) -> Statistics:
        """Those of the channels together: merged (Luo et al. 2019, equation 4), for a mask counted again."""
        if mask is not None:
            return measure(input, self._layer, mask)
        return merged(instance, cells(input, self._batch).axis)

    def _of_batch(self, instance: Statistics, input: Tensor, mask: Tensor | None) -> Statistics:
        if self.training:
            seen = merged(instance, 0) if mask is None else measure(input, self._batch, mask)
            teach(dict(self.named_buffers()), self._batch, seen)
            return seen
        view = cells(input, self._batch)
        mean, var = (wide(self.get_buffer(name)) for name in ("running_mean", "running_var"))
        return Statistics(view.along_channels(mean), view.along_channels(var), 0)


class BatchChannelNorm(nn.Module):
    """Batch normalization with estimated statistics, then groups of channels of each sample (Qiao et al. 2019).

    Estimated statistics are running ones that learn from the batch first and stand outside the gradient, so that a
    batch of one sample trains; the groups bring back the gradient through statistics.

    Args:
        num_channels: C.
        num_groups: into how many groups the channels are split; each has one weight and one bias.
        eps: the guard of both divisions.
        momentum: the weight of the newest batch in the estimate.
        estimate: False gives plain batch normalization in the first place, for large batches.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Raises:
        ShapeError: the channels do not split into the groups.
    """

    def __init__(
        self,
        num_channels: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        momentum: float = 0.1,
        estimate: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        batch = CATALOG["EstimatedBatchNorm" if estimate else "BatchNorm"].but(eps=eps, momentum=momentum)
        groups = CATALOG["GroupNorm"].but(groups=num_groups, eps=eps, affine=False, bias=False)
        self.over_batch = Norm(batch, num_channels, device=device, dtype=dtype)
        self.over_groups = Norm(groups, num_channels)
        self.weight = nn.Parameter(torch.ones(num_groups, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_groups, device=device, dtype=dtype))

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """The input normalized twice."""
        if isinstance(input, Proxy):
            return leaf(self, input, mask)
        expect_channels(self, input, self.over_batch.channels)
        y = self.over_groups(self.over_batch(input, mask), mask)
        return scale_and_shift(y, self.over_groups.spec, None, None, self.weight, self.bias, mask)
