"""Batch norm on the GPU, and whatever has its statistics given, with the activation and the residual sum."""

from __future__ import annotations

from torch import Tensor

from normscope.kernels.offer import Gradients, Made, Offer, Operands, Problem
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


OFFERS = (Offer("triton", "channels", _supports, forward=_forward, backward=_backward),)
