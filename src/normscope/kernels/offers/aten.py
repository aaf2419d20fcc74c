"""ATen's fused functions as an offer; the residual sum and the activation follow as functions of their own."""

from __future__ import annotations

from torch import Tensor

from normscope.kernels import native, reference
from normscope.kernels.offer import Offer, Operands, Problem
from normscope.kernels.reference import Statistics


def _supports(problem: Problem) -> str | None:
    if problem.mask:
        return "ATen counts all cells, masked or not"
    if (problem.told or problem.given) and "C" in problem.spec.over:
        return "ATen takes and tells statistics of single channels only"
    if problem.elements() <= problem.statistics() and not problem.given and problem.spec.center:
        return "ATen refuses one cell a statistic"
    return native.refuses(problem.spec, problem.casts_first())


def _run(problem: Problem, operands: Operands) -> tuple[Tensor, Statistics | None]:
    x, weight, bias, residual, _, mean, var = operands
    spec, seen = problem.spec, None
    if mean is not None and var is not None:
        y = native.applied(x, spec, mean, var, weight, bias)
    elif problem.told:
        y, seen = native.measured(x, spec, weight, bias)
    else:
        y = native.normalized(x, spec, weight, bias)
    if spec.layout == "channels_last" and "N" in spec.over and x.is_contiguous():
        y = y.contiguous()  # ATen has the channels second, and keeps them so in memory
    return reference.finish(y, x, spec, residual), seen


OFFERS = (Offer("aten", "functions", _supports, _run),)
