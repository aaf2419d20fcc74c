"""Layer and RMS norm on the GPU, with the activation and the residual sum in the same pass; rows of any length."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from normscope.kernels.offer import Gradients, Made, Offer, Operands, Problem
from normscope.kernels.triton.form import (
    PROGRAMS,
    flat,
    fresh_statistics,
    guard,
    like,
    loops,
    on,
    power,
    refuses,
    room,
    warps,
)

_LONG = 1 << 14  # numbers of a row that a program holds at once, forward
_LONG_BACK = 1 << 13  # and backward, where it holds two tensors and two sums
_PIECE = 1 << 12  # of a longer row
_TILE = 1 << 11  # numbers of short rows held together


def _supports(problem: Problem) -> str | None:
    spec = problem.spec
    if spec.over != frozenset("C") or spec.groups != 1 or problem.given:
        return "it takes statistics over all channels of one position, and measures them itself"
    if not (spec.scale == "rms" and not spec.center) and not (spec.center and spec.scale == "std"):
        return "it divides by the standard deviation about the mean, or by the root mean square"
    return refuses(problem) or (None if _side_by_side(problem) else "the channels do not lie side by side")


def _side_by_side(problem: Problem) -> bool:
    if problem.spec.layout == "channels_last":
        return problem.memory == "contiguous"
    return problem.memory == "channels_last" or math.prod(problem.shape[2:]) == 1


def _forward(problem: Problem, operands: Operands) -> Made:
    kernels = loops("rows")
    x, channels = operands.x, problem.channels()
    rows = x.numel() // channels
    y = room(x)
    mean, var = fresh_statistics(x, rows)
    tile = _tile(channels, _LONG)
    with on(x):
        kernels.forward[-(-rows // tile["BR"]),](
            x, y, operands.residual, flat(operands.weight), flat(operands.bias), mean, var, rows, channels,
            guard(problem.spec), problem.spec.weight_offset, **_words(problem), **tile, ONE=tile["BC"] >= channels,
        )  # fmt: skip
    return Made(y.to(x.dtype), mean, var)


def _backward(problem: Problem, operands: Operands, y: Tensor | None, made: Made, grad: Tensor) -> Gradients:
    kernels = loops("rows")
    x, channels, kept = operands.x, problem.channels(), problem.keeps()
    rows = x.numel() // channels
    tile = _tile(channels, _LONG_BACK)
    long = tile["BC"] < channels
    # a row that fills a multiprocessor wants one program on each, and fewer sums to write
    share = -(-rows // (PROGRAMS // 4 if channels >= _LONG_BACK else PROGRAMS))
    share = -(-share // tile["BR"]) * tile["BR"]
    programs = -(-rows // share)
    more = y if kept == "y" else operands.residual if kept else None
    dx, dr = room(x), room(x) if kept else None
    fresh = torch.zeros if long else torch.empty
    of_affine = fresh(2, programs, channels, device=x.device)
    with on(x):
        (kernels.backward_long if long else kernels.backward)[programs,](
            x, grad, more, flat(operands.weight), flat(operands.bias), made.mean, made.var, dx, dr, *of_affine, rows,
            channels, share, guard(problem.spec), problem.spec.weight_offset, KEPT=kept, **_words(problem), **tile,
        )  # fmt: skip
        dw, db = of_affine.sum(1)
    return Gradients(dx.to(x.dtype), like(dw, operands.weight), like(db, operands.bias), like(dr, operands.x))


def _words(problem: Problem) -> dict[str, Any]:
    return {"KIND": problem.spec.activation, "RMS": problem.spec.scale == "rms"}


def _tile(channels: int, most: int) -> dict[str, int]:
    """How many rows a program holds at once, and how much of them."""
    whole = power(channels)
    piece, at_once = (whole, max(1, _TILE // whole)) if whole <= most else (_PIECE, 1)
    return {"BR": at_once, "BC": piece, "num_warps": warps(at_once * piece)}


OFFERS = (Offer("triton", "rows", _supports, forward=_forward, backward=_backward),)
