"""The summary of a tensor on the GPU in one reading: moments, range, and the tally behind `Sketch`."""

from __future__ import annotations

import torch
from torch import Tensor

from normscope.kernels.offer import memory_of
from normscope.kernels.triton.form import DTYPES, PROGRAMS, interpreted, loops, missing, on, power

# The cells are those of normscope.stats.sketch, a part that kernels do not know; a test holds the two together.
BINS = 2048  # of both signs, 16 an octave
CELLS = BINS + 4  # and exact zeros, NaN, +∞, −∞
_LOWEST = -32  # the exponent where the bins begin
_ROOM = 4096  # counters of a program, a power of two
_BLOCK = 4096
_TOGETHER = 256  # counters that a program of the merge looks at


def refuses(x: Tensor) -> str | None:
    """Why `told` does not serve `x`, or None."""
    if not x.is_cuda and not (x.is_cpu and interpreted()):
        return f"it computes on CUDA, not on {x.device.type}"
    if x.dtype not in DTYPES:
        return f"it reads float32, bfloat16 and float16, not {str(x.dtype).removeprefix('torch.')}"
    if x.numel() == 0 or (x.ndim != 1 and memory_of(x) == "strided"):
        return "the tensor is empty, or neither contiguous, nor channels_last, nor of one axis"
    return missing()


def told(x: Tensor) -> Tensor:
    """Of every element of `x`, int64 (CELLS + 5,): the tally, then five float64 by their bits.

    These are how many are finite, their mean and M2, the least and the greatest; NaN where none is. Nothing is waited
    for, and nothing leaves the device.
    """
    return of_rows(x.as_strided((1, x.numel()), (0, x.stride(0) if x.ndim == 1 else 1))).view(-1)


def of_rows(x: Tensor) -> Tensor:
    """The same of each row of `x`, (R, n) of any strides: (R, CELLS + 5)."""
    kernels = loops("summary")
    rows, size = x.shape
    share = -(-size // max(1, PROGRAMS // rows))
    share = -(-share // _BLOCK) * _BLOCK
    programs = -(-size // share)
    counts = torch.empty(rows, programs, _ROOM, dtype=torch.int32, device=x.device)
    numbers = torch.empty(rows, 5, programs, dtype=torch.float64, device=x.device)
    found = torch.empty(rows, CELLS + 5, dtype=torch.int64, device=x.device)
    with on(x):
        kernels.summed[programs, rows](
            x, counts, numbers, size, x.stride(1), x.stride(0), share, programs, BINS=BINS, LOWEST=_LOWEST, ROOM=_ROOM,
            BLOCK=_BLOCK, num_warps=8,
        )  # fmt: skip
        kernels.merged[-(-CELLS // _TOGETHER), rows](
            counts, numbers, found, programs, CELLS=CELLS, ROOM=_ROOM, BJ=_TOGETHER, BK=min(power(programs), 16),
            num_warps=4,
        )  # fmt: skip
    return found
