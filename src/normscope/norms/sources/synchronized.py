"""Statistics over the batch of every process of a group."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normscope.kernels import dispatch, together
from normscope.kernels.cells import cells
from normscope.kernels.offer import Operands, Problem
from normscope.kernels.reference import Statistics, finish, measure, root, scale_and_shift
from normscope.norms.sources.measured import Measured
from normscope.norms.sources.meeting import AllReduce
from normscope.norms.sources.source import Call
from normscope.terms.spec import NormSpec


class Synchronized(Measured):
    """Chan's merge of the statistics of all ranks, inside the gradient; on one process, that batch's own.

    Ranks may hold batches of different sizes. A rank without data takes part with an empty batch (N = 0), forward and
    backward, so that no rank waits for it in vain. For a rank that makes no call at all the others wait `Call.patience`
    seconds, and raise.
    """

    def normalize(self, call: Call) -> Tensor:
        """Normalize with the statistics of all ranks."""
        return self.measure(call)[0]

    def measure(self, call: Call) -> tuple[Tensor, tuple[Statistics, ...]]:
        """Normalize with the statistics of all ranks, and say what they are."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size(call.group) > 1):
            return super().measure(call)
        operands = Operands(call.x, call.weight, call.bias, call.residual, call.mask)
        problem = Problem.of(call.spec, operands, told=True)
        offer = None if torch.compiler.is_compiling() else dispatch.staged(problem)
        if offer is not None:
            y, seen = together.measured(offer, problem, operands, partial(_gathered, call), partial(self.formula, call))
            return y, (seen,)
        merged = self.merged(call)
        return self.applied(call, merged), (Statistics(merged.mean.detach(), merged.var.detach(), merged.size),)

    def formula(self, call: Call, x: Tensor, spec: NormSpec, *, statistics: None, **others: Any) -> Tensor:
        """The formula over all ranks, as torch differentiates it, of other operands than those of `call`."""
        call = call._replace(x=x, spec=spec, **others)
        return self.applied(call, self.merged(call))

    def applied(self, call: Call, seen: Statistics) -> Tensor:
        """The output by the statistics of all ranks."""
        y = scale_and_shift(call.x, call.spec, seen.mean, root(seen.var, call.spec), call.weight, call.bias, call.mask)
        return finish(y, call.x, call.spec, call.residual, call.mask)

    def merged(self, call: Call) -> Statistics:
        """Mean, then variance about the merged mean: two reductions of C numbers, no squares of the mean.

        Raises:
            ModelError: a rank of the group did not come in time, or is gone.
        """
        own = measure(call.x, call.spec, call.mask)
        view = cells(call.x, call.spec)
        count = own.mean.new_zeros(view.along_channels(own.mean.new_zeros(view.groups)).shape) + own.size
        some = count > 0
        mean, var = (torch.where(some, value, 0.0) for value in (own.mean, own.var))  # an empty batch has NaN
        sums = AllReduce.apply(torch.stack([mean * count, count]), call.group, call.patience)
        total = sums[1].clamp(min=1)
        center = sums[0] / total
        squares = torch.where(some, (var + (mean - center).square()) * count, 0.0)
        return Statistics(center, AllReduce.apply(squares, call.group, call.patience) / total, sums[1].detach().amax())


def _gathered(call: Call, own: Tensor) -> Tensor:
    """What every rank holds, stacked: a sum in which each has a place of its own."""
    places = own.new_zeros(dist.get_world_size(call.group), *own.shape)
    places[dist.get_rank(call.group)] = own
    return AllReduce.apply(places, call.group, call.patience)
