"""A problem as sizes and strides, what every kernel here refuses, and where it is launched."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normscope.kernels.offer import Operands, Problem, statistic_dtype
from normscope.terms.spec import NormSpec

ACTIVATIONS = (None, "relu", "leaky_relu", "silu", "gelu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROGRAMS = 528  # four for each of an H200's 132 multiprocessors; one number, so that sums are the same on every device
_TILE = 4096  # numbers that a program holds at once
_RUN = 128  # of them beside each other in memory where the other axis is the longer one


class Form(NamedTuple):
    """A tensor looked at as (samples, channels, positions): sizes and strides, and which cells share a statistic."""

    samples: int
    channels: int
    positions: int
    strides: tuple[int, int, int]
    groups: int  # statistics of a sample; of all samples together where `batch`
    batch: bool
    block: tuple[int, int]  # channels and positions of a tile

    @property
    def inner(self) -> int:
        """Channels that share a statistic."""
        return self.channels // self.groups

    @property
    def tiles(self) -> int:
        """Tiles along the positions of one sample."""
        return -(-self.positions // self.block[1])

    @property
    def statistics(self) -> int:
        """How many there are."""
        return self.groups if self.batch else self.samples * self.groups

    @property
    def size(self) -> int:
        """Cells that share a statistic."""
        return self.inner * self.positions * (self.samples if self.batch else 1)


def form(problem: Problem) -> Form:
    """The form of a problem whose statistics are of channels or groups of them."""
    shape, spec = problem.shape, problem.spec
    first = spec.layout == "channels_first"
    samples, channels = shape[0], shape[1] if first else shape[-1]
    positions = math.prod(shape[2:] if first else shape[1:-1])
    batch = spec.over == frozenset("NS") or problem.given
    side_by_side = not first or problem.memory == "channels_last" or positions == 1
    strides = (channels * positions, 1, channels) if side_by_side else (channels * positions, positions, 1)
    if side_by_side and batch:
        samples, positions = 1, samples * positions
    groups = spec.groups if "C" in spec.over and not problem.given else channels
    reach = channels if batch else channels // groups
    if side_by_side:
        across = min(power(reach), _RUN)
        block = (across, min(power(positions), _TILE // across))
    else:
        along = min(power(positions), _TILE)
        block = (min(power(reach), _TILE // along), along)
    return Form(samples, channels, positions, strides, groups, batch, block)


def guard(spec: NormSpec) -> float:
    """The eps of a description; without one that of float32, in which statistics are taken here."""
    return torch.finfo(torch.float32).eps if spec.eps is None else spec.eps


def power(number: int) -> int:
    """The least power of two that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()


def hint(size: int) -> int:
    """The power of two that divides a size, up to 8, for the compiler; 1 where 16 does, which it sees by itself."""
    return 1 if size % 16 == 0 else size & -size


def tiled(form: Form) -> dict[str, int]:
    """The tile of a kernel, the warps that hold it, and what the sizes along memory are multiples of."""
    across, along = form.block
    last = form.strides[1] == 1 and form.strides[2] != 1
    width = form.channels if form.batch else form.inner
    aligned = {"AJ": hint(width) if last else 1, "AP": 1 if last else hint(form.positions)}
    return {"BJ": across, "BP": along, **aligned, "num_warps": warps(across * along)}


def warps(numbers: int) -> int:
    """Warps for a program that holds so many numbers at once: sixteen numbers a thread."""
    return min(16, max(1, power(numbers) // 512))


def refuses(problem: Problem) -> str | None:
    """Why no kernel here serves a problem, or None; what one of them refuses beside this, it says itself."""
    spec = problem.spec
    if problem.device != "cuda" and not (problem.device == "cpu" and interpreted()):
        return f"it computes on CUDA, not on {problem.device}"
    if spec.eps_place != "inside" or problem.casts_first():
        return "it has eps inside the root and casts last"
    if spec.activation not in ACTIVATIONS:
        return f"it has no {spec.activation}"
    if problem.dtype not in DTYPES:
        return f"it computes float32, bfloat16 and float16, not {str(problem.dtype).removeprefix('torch.')}"
    if problem.mask:
        return "it counts all cells, masked or not"
    if problem.memory == "strided" or len(problem.shape) < 2:
        return "the input is neither contiguous nor channels_last"
    if 0 in problem.shape:
        return "the input is empty"
    return problem.odd or missing()


def interpreted() -> bool:
    """Whether Triton is to run in its interpreter, on the host, as it was asked to before it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@cache
def missing() -> str | None:
    """Why Triton is not to be had, or None."""
    return None if find_spec("triton") else "the package triton is not installed: pip install normscope[gpu]"


def loops(name: str) -> Any:
    """A module of `compiled`; this is where Triton is imported."""
    return import_module(f"normscope.kernels.triton.compiled.{name}")


def on(x: Tensor) -> AbstractContextManager[object]:
    """Launch on the device of `x`, whichever is the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def fresh_statistics(x: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Room for μ and σ²."""
    mean, var = torch.empty(2, number, dtype=statistic_dtype(x.device.type), device=x.device).unbind()
    return mean, var


def room(x: Tensor) -> Tensor:
    """Room for an output or gradient like `x`.

    In the interpreter, which cuts the bits that bfloat16 lacks off where a GPU rounds, it is float32, rounded later.
    """
    cut = x.dtype is torch.bfloat16 and not x.is_cuda
    return torch.empty_like(x, dtype=torch.float32 if cut else x.dtype)


def told(operands: Operands, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """The statistics that were given, else those measured."""
    if operands.mean is None or operands.var is None:
        return mean, var
    return operands.mean.contiguous(), operands.var.contiguous()


def flat(value: Tensor | None) -> Tensor | None:
    """A weight or bias, one number beside the other."""
    return None if value is None else value.contiguous()


def like(value: Tensor | None, operand: Tensor | None) -> Tensor | None:
    """A gradient in the dtype of its operand; None where there is none."""
    return None if value is None or operand is None else value.to(operand.dtype)
