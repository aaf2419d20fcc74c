"""Statistics over the batch of every process of a group."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normscope.kernels.cells import cells
from normscope.kernels.reference import Statistics, finish, measure, root, scale_and_shift
from normscope.norms.sources.measured import Measured
from normscope.norms.sources.source import Call
from normscope.terms.errors import ModelError


class Synchronized(Measured):
    """Chan's merge of the statistics of all ranks, inside the gradient; on one process, that batch's own.

    Ranks may hold batches of different sizes. A rank without data takes part with an empty batch (N = 0), forward and
    backward, so that no rank waits for it in vain. For a rank that makes no call at all the others wait as long as
    the group does (30 minutes unless it was made with a `timeout`), and raise.
    """

    def normalize(self, call: Call) -> Tensor:
        """Normalize with the statistics of all ranks."""
        return self.measure(call)[0]

    def measure(self, call: Call) -> tuple[Tensor, tuple[Statistics, ...]]:
        """Normalize with the statistics of all ranks, and say what they are."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size(call.group) > 1):
            return super().measure(call)
        merged = self.merged(call)
        y = scale_and_shift(
            call.x, call.spec, merged.mean, root(merged.var, call.spec), call.weight, call.bias, call.mask
        )
        y = finish(y, call.x, call.spec, call.residual, call.mask)
        return y, (Statistics(merged.mean.detach(), merged.var.detach(), merged.size),)

    def merged(self, call: Call) -> Statistics:
        """Mean, then variance about the merged mean: two reductions of C numbers, no squares of the mean.

        Raises:
            ModelError: a rank of the group did not come in the time of the group, or is gone.
        """
        own = measure(call.x, call.spec, call.mask)
        view = cells(call.x, call.spec)
        count = own.mean.new_zeros(view.along_channels(own.mean.new_zeros(view.groups)).shape) + own.size
        some = count > 0
        mean, var = (torch.where(some, value, 0.0) for value in (own.mean, own.var))  # an empty batch has NaN
        sums = _AllReduce.apply(torch.stack([mean * count, count]), call.group)
        total = sums[1].clamp(min=1)
        center = sums[0] / total
        squares = torch.where(some, (var + (mean - center).square()) * count, 0.0)
        return Statistics(center, _AllReduce.apply(squares, call.group) / total, sums[1].detach().amax())


class _AllReduce(torch.autograd.Function):
    """The sum over the ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.contiguous().clone()
        try:
            dist.all_reduce(total, group=group)
        except RuntimeError as error:
            raise _left_alone(group, error) from error
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _AllReduce.apply(grad, ctx.group), None


def _left_alone(group: Any, error: RuntimeError) -> ModelError:
    told = str(error).strip().splitlines() or [type(error).__name__]
    return ModelError(
        "A synchronized batch normalization waited for the batches of all ranks of its group.",
        found={"rank": f"{dist.get_rank(group)} of {dist.get_world_size(group)}", "backend": told[0]},
        because="a rank made no call in this step, or is gone, and the statistics are those of all ranks",
        do="on a rank without data call the model on an empty batch, x[:0], and take its backward pass too; "
        "process_group=dist.new_group(timeout=…) sets how long to wait",
    )
