"""The reference as an offer: it serves every problem."""

from __future__ import annotations

from torch import Tensor

from normscope.kernels import reference
from normscope.kernels.cells import cells
from normscope.kernels.offer import Offer, Operands, Problem
from normscope.kernels.reference import Statistics


def _supports(problem: Problem) -> str | None:
    if problem.spec.scale == "whiten":
        return "σ is a matrix, which is no matter of this formula"
    return None


def _run(problem: Problem, operands: Operands) -> tuple[Tensor, Statistics | None]:
    x, weight, bias, residual, mask, mean, var = operands
    spec = problem.spec
    if mean is not None and var is not None:
        view = cells(x, spec)
        mean, var = view.along_channels(mean), view.along_channels(reference.wide(var))
        seen = None
    else:
        seen = reference.measure(x, spec, mask)
        mean, var = seen.mean, seen.var
    y = reference.scale_and_shift(
        x, spec, mean if spec.center else None, reference.root(var, spec) if spec.scale else None, weight, bias, mask
    )
    y = reference.finish(y, x, spec, residual, mask)
    if seen is None or not problem.told:
        return y, None
    return y, Statistics(seen.mean.detach(), seen.var.detach(), seen.size)


OFFERS = (Offer("reference", "formula", _supports, _run),)
