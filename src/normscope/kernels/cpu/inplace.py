"""Batch, group and instance norm over their own input, so that training keeps the output alone.

Of an invertible activation the backward pass tells x̂ from the output (Rota Bulò et al. 2018, "In-Place Activated
BatchNorm…", section 3.2: x̂ = (f⁻¹(y) − b)/g). Where g is small beside b, or zero, y has too few digits for that: the
input of such channels is kept. The sign of g is free.

It is never chosen by itself: who asks for it gives up the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from normscope.kernels.cpu import channels
from normscope.kernels.offer import Made, Offer, Operands, Problem
from normscope.kernels.reference import Statistics

# |g| at most this share of |b|: x̂ would lose 7 bits of float32's 24, 1 bit of bfloat16's 8
_LOST = {torch.float32: 2.0**-7, torch.bfloat16: 2.0**-1}
_INVERTIBLE = (None, "leaky_relu")


def _refuses(problem: Problem) -> str | None:
    if problem.spec.activation not in _INVERTIBLE:
        return f"the input of {problem.spec.activation} cannot be told from its output"
    if problem.residual:
        return "the norm's share of a sum with a residual cannot be told from the output"
    if problem.given:
        return "with given statistics nothing but the output is kept anyway"
    return channels.OFFERS[0].refuses(problem)


def _run(problem: Problem, operands: Operands) -> tuple[Tensor, Statistics | None]:
    from normscope.kernels import fused

    x = operands.x
    if not problem.grad or x.is_leaf or x._is_view() or torch.compiler.is_compiling():
        return fused.run(channels.OFFERS[0], problem, operands)  # what others hold is not overwritten
    y, mean, var = _InPlace.apply(problem, *operands[:3])  # type: ignore[misc]
    return y, fused.statistics(problem, y, mean, var) if problem.told else None


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, problem: Problem, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Any:
        lost = _lost(problem, weight, bias)
        held = None if lost is None else x.index_select(_axis(problem), lost)
        with torch.no_grad():
            _, mean, var = channels.made(problem, Operands(x, weight, bias), x)
        ctx.problem = problem
        ctx.mark_dirty(x)
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, mean, var, lost, held)
        return x, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if grad is None:
            return (None,) * 4
        y, weight, bias, mean, var, lost, held = ctx.saved_tensors
        grad = _like(grad, ctx.problem)
        made = channels.differentiated(ctx.problem, Operands(y, weight, bias), None, Made(y, mean, var), grad, -1)
        if lost is not None:
            problem, operands, seen = _part(ctx.problem, held, weight, bias, mean, var, lost)
            upstream = grad.index_select(_axis(ctx.problem), lost)
            part = channels.differentiated(problem, operands, None, seen, _like(upstream, problem), 0)
            for whole, some, axis in zip(made, part, (_axis(ctx.problem), 0, 0, 0), strict=True):
                if whole is not None and some is not None:
                    whole.index_copy_(axis, lost, some)
        wanted = zip(made[:3], ctx.needs_input_grad[1:], strict=True)
        return None, *(value if needed else None for value, needed in wanted)


def _axis(problem: Problem) -> int:
    return 1 if problem.spec.layout == "channels_first" else len(problem.shape) - 1


def _like(value: Tensor, problem: Problem) -> Tensor:
    if problem.memory == "contiguous":
        return value.contiguous()
    return value.contiguous(memory_format=torch.channels_last if value.ndim == 4 else torch.channels_last_3d)


def _lost(problem: Problem, weight: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """The channels whose input the output does not tell, with all others of their groups; None where there are none."""
    if weight is None:
        return None
    size = weight.detach().float().abs()
    least = torch.finfo(torch.float32).tiny if bias is None else bias.detach().float().abs() * _LOST[problem.dtype]
    lost = ~(size > least) | (size < torch.finfo(torch.float32).tiny)
    if "C" in problem.spec.over:
        lost = lost.unflatten(0, (problem.spec.groups, -1)).any(1, keepdim=True)
        lost = lost.expand(-1, problem.channels() // problem.spec.groups).flatten()
    return lost.nonzero().flatten() if lost.any() else None


def _part(
    problem: Problem, held: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, lost: Tensor
) -> tuple[Problem, Operands, Made]:
    """The problem of some channels alone: of whole groups, where groups share statistics."""
    spec, places = problem.spec, lost
    if "C" in spec.over:
        inner = problem.channels() // spec.groups
        places = lost[::inner] // inner
        spec = spec.but(groups=len(places))
    if "N" not in spec.over:
        mean, var = (value.view(problem.shape[0], -1) for value in (mean, var))
    mean, var = (value.index_select(-1, places).flatten() for value in (mean, var))
    weight, bias = (None if value is None else value.detach()[lost] for value in (weight, bias))
    operands = Operands(held.contiguous(), weight, bias)
    return Problem.of(spec, operands), operands, Made(operands.x, mean, var)


OFFERS = (Offer("inplace", "channels", _refuses, run=_run),)
"""Asked for by name alone: there is no row of it in the table of costs."""
