"""Layer and RMS norm on the CPU, with the activation and the residual sum in the same pass."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from normscope.kernels.cpu import fresh
from normscope.kernels.cpu.pool import affine, launch, missing, past, plain, room, smooth, words
from normscope.kernels.offer import Gradients, Made, Offer, Operands, Problem

_ACTIVATIONS = (None, "relu", "leaky_relu", "silu", "gelu", "gelu_tanh")  # by their numbers in compiled/activations.py
_EPS = torch.finfo(torch.float32).eps  # None asks for that of the dtype in which statistics are taken
_TASKS, _PANEL = 64, 16  # panels, and rows of one at least: no sum depends on the number of threads


def _supports(problem: Problem) -> str | None:
    spec = problem.spec
    if problem.device != "cpu":
        return f"it computes on the CPU, not on {problem.device}"
    if spec.over != frozenset("C") or spec.groups != 1:
        return f"it takes statistics over the channels, not over {''.join(sorted(spec.over)) or 'nothing'}"
    if not _is_rms(problem) and not (spec.center and spec.scale == "std"):
        return "it divides by the standard deviation about the mean, or by the root mean square"
    if spec.eps_place != "inside" or problem.casts_first():
        return "it has eps inside the root and casts last"
    if spec.activation not in _ACTIVATIONS:
        return f"it has no {spec.activation}"
    if problem.dtype not in (torch.float32, torch.bfloat16):
        return f"it computes float32 and bfloat16, not {str(problem.dtype).removeprefix('torch.')}"
    if problem.mask or problem.given:
        return "it measures all cells of the input itself"
    if not _is_rows(problem):
        return "the channels do not lie side by side"
    if 0 in problem.shape:
        return "the input is empty"
    return problem.odd or missing()


def _is_rms(problem: Problem) -> bool:
    return problem.spec.scale == "rms" and not problem.spec.center


def _is_rows(problem: Problem) -> bool:
    shape = problem.shape
    if problem.spec.layout == "channels_last":
        return problem.memory == "contiguous" and len(shape) > 1
    return problem.memory == "channels_last" or (problem.memory == "contiguous" and math.prod(shape[2:]) == 1)


def _forward(problem: Problem, operands: Operands) -> Made:
    x, residual = operands.x, operands.residual
    rows = x.numel() // problem.channels()
    y, mean, var = fresh.like(x), *(room(rows, dtype=torch.float64) for _ in range(2))
    packed, kept = _packed(problem, operands, rows, mean, var, int(problem.residual))
    packed[11], packed[29] = y.data_ptr(), past(y) and _is_lines(problem)
    packed[16] = 0 if residual is None else residual.data_ptr()
    half = x.dtype is torch.bfloat16
    launch(_rows("forward", half, smooth(packed[33])), packed, packed[2])
    del kept
    return Made(y, mean, var)


def _backward(problem: Problem, operands: Operands, y: Tensor | None, made: Made, grad: Tensor) -> Gradients:
    x = operands.x
    way = {None: 0, "y": 1, "residual": 2}[problem.keeps()]
    packed, kept = _packed(problem, operands, x.numel() // problem.channels(), made.mean, made.var, way)
    dx, dr = fresh.like(x), fresh.like(x) if way else None
    parts = room(2, packed[2] * problem.channels(), dtype=torch.float64)
    of_affine = affine(problem.channels(), operands.weight, operands.bias, packed)
    more = y if way == 1 else operands.residual if way == 2 else None
    packed[11], packed[17] = dx.data_ptr(), grad.data_ptr()
    packed[18], packed[19] = parts.data_ptr(), parts.data_ptr() + 8 * packed[2] * problem.channels()
    packed[29] = past(*(made for made in (dx, dr) if made is not None)) and _is_lines(problem)
    packed[16], packed[20] = (0, 0) if more is None or dr is None else (more.data_ptr(), dr.data_ptr())
    half = x.dtype is torch.bfloat16
    launch(_rows("backward", half, smooth(packed[33])), packed, packed[2], 12 * problem.channels())
    del kept
    return Gradients(dx, *of_affine(), dr)


def _is_lines(problem: Problem) -> bool:
    """Whether every row begins with a line of memory, if the first one does."""
    return problem.channels() * problem.dtype.itemsize % 64 == 0


def _packed(
    problem: Problem, operands: Operands, rows: int, mean: Tensor, var: Tensor, way: int
) -> tuple[Any, list[Tensor]]:
    """The words that the kernels read, and the tensors behind them, which must live as long; `way` as in `channels`."""
    channels = problem.channels()
    weight, bias = plain(operands.weight, channels, 1.0), plain(operands.bias, channels, 0.0)
    weight = weight + problem.spec.weight_offset if problem.spec.weight_offset else weight
    panel = max(_PANEL, -(-rows // _TASKS))
    packed = words(
        {
            2: -(-rows // panel),
            3: rows,
            4: channels,
            5: 1,
            6: 1,
            28: panel,
            10: operands.x.data_ptr(),
            12: weight.data_ptr(),
            13: bias.data_ptr(),
            14: mean.data_ptr(),
            15: var.data_ptr(),
            33: _ACTIVATIONS.index(problem.spec.activation),
            34: way,
            35: int(_is_rms(problem)),
        },
        _EPS if problem.spec.eps is None else problem.spec.eps,
    )
    return packed, [weight, bias, mean, var]


@functools.cache
def _rows(name: str, half: bool, kind: int) -> Any:
    from normscope.kernels.cpu.compiled import rows

    return getattr(rows, name)(half, kind)


OFFERS = (Offer("numba", "rows", _supports, forward=_forward, backward=_backward),)
