"""Group and instance norm on the GPU, with the activation and the residual sum in the same pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normscope.kernels.offer import Gradients, Made, Offer, Operands, Problem
from normscope.kernels.triton import sweeps
from normscope.kernels.triton.form import (
    Form,
    flat,
    form,
    fresh_statistics,
    guard,
    like,
    loops,
    on,
    refuses,
    room,
    tiled,
)

_MANY = 128  # programs that fill a GPU, or nearly
_SMALL = 1 << 14  # cells that one program passes in no time


def _supports(problem: Problem) -> str | None:
    spec = problem.spec
    if spec.over not in (frozenset("CS"), frozenset("S")) or problem.given:
        return "it takes statistics of channels or groups of one sample, and measures them itself"
    if not spec.center or spec.scale != "std":
        return "it centres, and divides by the standard deviation"
    return refuses(problem)


def _forward(problem: Problem, operands: Operands) -> Made:
    shape, x = form(problem), operands.x
    if not _alone(shape):
        return sweeps.forward(problem, shape, operands)
    kernels = loops("groups")
    y = room(x)
    mean, var = fresh_statistics(x, shape.statistics)
    with on(x):
        kernels.forward[shape.statistics,](
            x, y, operands.residual, flat(operands.weight), flat(operands.bias), mean, var, *_sizes(problem, shape),
            KIND=problem.spec.activation, **_tile(shape),
        )  # fmt: skip
    return Made(y.to(x.dtype), mean, var)


def _backward(problem: Problem, operands: Operands, y: Tensor | None, made: Made, grad: Tensor) -> Gradients:
    shape, x, kept = form(problem), operands.x, problem.keeps()
    if not _alone(shape):
        return sweeps.backward(problem, shape, operands, y, made, grad)
    kernels = loops("groups")
    more = y if kept == "y" else operands.residual if kept else None
    dx, dr = room(x), room(x) if kept else None
    of_affine = torch.empty(2, shape.samples, shape.channels, device=x.device)
    with on(x):
        kernels.backward[shape.statistics,](
            x, grad, more, flat(operands.weight), flat(operands.bias), made.mean, made.var, dx, dr, *of_affine,
            *_sizes(problem, shape), KIND=problem.spec.activation, KEPT=kept, **_tile(shape),
        )  # fmt: skip
        dw, db = of_affine.sum(1)
    return Gradients(dx.to(x.dtype), like(dw, operands.weight), like(db, operands.bias), like(dr, operands.x))


def _alone(shape: Form) -> bool:
    """Whether a group is left to one program: there are enough of them, or it is small."""
    return shape.statistics >= _MANY or shape.size <= _SMALL


def _sizes(problem: Problem, shape: Form) -> tuple[int | float, ...]:
    spec = problem.spec
    return shape.positions, *shape.strides, shape.groups, shape.inner, guard(spec), spec.weight_offset


def _tile(shape: Form) -> dict[str, Any]:
    across, along = shape.block
    one = shape.inner <= across and shape.positions <= along
    return {**tiled(shape), "ONE": one}


OFFERS = (Offer("triton", "groups", _supports, forward=_forward, backward=_backward),)
