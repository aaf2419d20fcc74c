"""Batch norm on the GPU, and whatever has its statistics given, with the activation and the residual sum."""

from __future__ import annotations

import torch
from torch import Tensor

from normscope.kernels.offer import Gradients, Made, Offer, Operands, Problem, Stages
from normscope.kernels.triton import sweeps
from normscope.kernels.triton.form import form, refuses


def _supports(problem: Problem) -> str | None:
    spec = problem.spec
    if spec.over != frozenset("NS") and not (problem.given and "C" not in spec.over):
        return f"it takes statistics of channels over the batch, not over {''.join(sorted(spec.over)) or 'nothing'}"
    if not spec.center or spec.scale != "std":
        return "it centres, and divides by the standard deviation"
    return refuses(problem)


def _forward(problem: Problem, operands: Operands) -> Made:
    return sweeps.forward(problem, form(problem), operands)


def _backward(problem: Problem, operands: Operands, y: Tensor | None, made: Made, grad: Tensor) -> Gradients:
    return sweeps.backward(problem, form(problem), operands, y, made, grad)


def _moments(problem: Problem, operands: Operands) -> Tensor:
    shape = form(problem)
    mean, var = torch.empty(2, shape.channels, dtype=torch.float64, device=operands.x.device).unbind()
    sweeps.settle(shape, sweeps.moments(shape, operands.x), mean, var)
    return torch.stack((torch.full_like(mean, shape.size), mean, var * shape.size))


def _sums(problem: Problem, operands: Operands, y: Tensor | None, grad: Tensor) -> Tensor:
    return sweeps.sums(problem, form(problem), operands, y, grad).sum(1)


def _returned(
    problem: Problem, operands: Operands, y: Tensor | None, grad: Tensor, of_scale: Tensor, of_centre: Tensor
) -> Gradients:
    return sweeps.returned(problem, form(problem), operands, y, grad, of_scale, of_centre)


_STAGES = Stages(_moments, _sums, _returned)
OFFERS = (Offer("triton", "channels", _supports, forward=_forward, backward=_backward, stages=_STAGES),)
