"""The batch of several processes by one kernel: what each finds is gathered between the kernel's stages.

Every process gathers twice, once forward and once backward, whatever its batch is, an empty one too. Nothing waits for
the device, and the merge is in one order, so that all processes hold the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normscope.kernels.cells import cells
from normscope.kernels.fused import alike, by_reference
from normscope.kernels.offer import Gradients, Offer, Operands, Problem, Stages
from normscope.kernels.reference import Statistics

Gather = Callable[[Tensor], Tensor]


def measured(
    offer: Offer, problem: Problem, operands: Operands, gather: Gather, formula: Callable[..., Tensor]
) -> tuple[Tensor, Statistics]:
    """The formula with the statistics of all processes, and those statistics (detached).

    Args:
        offer: one with stages.
        problem: that of this process.
        operands: those of this process; no statistics.
        gather: a tensor of this process → those of all, stacked along a new first axis.
        formula: `reference.normalize` over all processes, differentiable, for a gradient of the gradient.
    """
    if problem.memory == "strided":  # which offers need not take; but all processes must go the same way
        operands = operands._replace(x=operands.x.contiguous())
        problem = problem._replace(memory="contiguous")
    operands = operands._replace(residual=alike(operands.residual, operands.x, problem))
    x, weight, bias, residual = operands[:4]
    y, mean, var, total = _Together.apply(offer, problem, gather, formula, x, weight, bias, residual)  # type: ignore[misc]
    view = cells(x, problem.spec)
    return y, Statistics(view.along_channels(mean), view.along_channels(var), total.amax())


def merged(found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and size, (C,) each, of the (count, mean, M2) of each process, (P, 3, C) (Chan et al.)."""
    count, mean, m2 = found.unbind(1)
    total = count.sum(0)
    some = total.clamp(min=1)
    middle = (count * mean).sum(0) / some
    return middle, (m2 + count * (mean - middle).square()).sum(0) / some, total


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, offer: Offer, problem: Problem, gather: Gather, formula: Any, *tensors: Any) -> Any:
        operands = Operands(*tensors)
        x, weight, bias, residual = tensors
        assert offer.stages is not None and offer.forward is not None
        nothing = torch.zeros(3, problem.channels(), dtype=torch.float64, device=x.device)
        own = offer.stages.moments(problem, operands) if problem.elements() else nothing
        mean, var, total = merged(gather(own))
        y = torch.empty_like(x)
        if problem.elements():
            y = offer.forward(problem._replace(given=True), operands._replace(mean=mean, var=var)).y
        kept = problem.keeps()
        ctx.rest = offer, problem, gather, formula
        ctx.save_for_backward(
            x, weight, bias, residual if kept == "residual" else None, y if kept == "y" else None, mean, var, total
        )
        ctx.mark_non_differentiable(mean, var, total)
        return y, mean, var, total

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        offer, problem, gather, formula = ctx.rest
        x, weight, bias, residual, y, mean, var, total = ctx.saved_tensors
        operands = Operands(x, weight, bias, residual)
        if torch.is_grad_enabled():  # create_graph=True
            made = by_reference(problem, operands, y, grad, formula)
        else:
            operands = operands._replace(mean=mean, var=var)
            made = _backward(offer.stages, problem, gather, operands, y, alike(grad, x, problem), total)
        needed = ctx.needs_input_grad[4:]
        return None, None, None, None, *(value if need else None for value, need in zip(made, needed, strict=True))


def _backward(
    stages: Stages, problem: Problem, gather: Gather, operands: Operands, y: Tensor | None, grad: Tensor, total: Tensor
) -> Gradients:
    x, weight, bias = operands[:3]
    given = problem._replace(given=True)
    nothing = torch.zeros(2, problem.channels(), dtype=torch.float64, device=x.device)
    own = stages.sums(given, operands, y, grad) if problem.elements() else nothing
    share = gather(own).sum(0) / total.clamp(min=1)
    if weight is not None:
        share = share * (weight + problem.spec.weight_offset)
    made = Gradients(torch.empty_like(x), residual=torch.empty_like(x) if problem.keeps() else None)
    if problem.elements():
        made = stages.returned(given, operands, y, grad, *share.float())
    if problem.residual and problem.spec.activation is None:
        made = made._replace(residual=grad)
    dw, db = (None if like is None else value.to(like.dtype) for value, like in zip(own, (weight, bias)))
    return made._replace(weight=dw, bias=db)
