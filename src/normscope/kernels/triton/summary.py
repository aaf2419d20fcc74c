"""The summary of a whole tensor on the GPU in one reading: moments, range, and the tally behind `Sketch`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from normscope.kernels.offer import memory_of
from normscope.kernels.triton.form import DTYPES, PROGRAMS, interpreted, loops, missing, on

# The cells are those of normscope.stats.sketch, a part that kernels do not know; a test holds the two together.
BINS = 2048  # of both signs, 16 an octave
CELLS = BINS + 4  # and exact zeros, NaN, +∞, −∞
_LOWEST = -32  # the exponent where the bins begin
_ROOM = 4096  # counters of a program, a power of two
_BLOCK = 4096


class Told(NamedTuple):
    """What one reading tells, on the device of the tensor.

    Attributes:
        tally: int64 (CELLS,), as `normscope.stats.Sketch.from_tally` takes it.
        numbers: float64 (5,): how many are finite, their mean and M2, the least and the greatest; NaN where none is.
    """

    tally: Tensor
    numbers: Tensor


def refuses(x: Tensor) -> str | None:
    """Why `told` does not serve `x`, or None."""
    if not x.is_cuda and not (x.is_cpu and interpreted()):
        return f"it computes on CUDA, not on {x.device.type}"
    if x.dtype not in DTYPES:
        return f"it reads float32, bfloat16 and float16, not {str(x.dtype).removeprefix('torch.')}"
    if x.numel() == 0 or memory_of(x) == "strided":
        return "the tensor is empty, or neither contiguous nor channels_last"
    return missing()


def told(x: Tensor) -> Told:
    """The tally and the moments of every element of `x`; nothing is waited for, and nothing leaves the device."""
    kernels = loops("summary")
    size = x.numel()
    share = -(-size // PROGRAMS)
    share = -(-share // _BLOCK) * _BLOCK
    programs = -(-size // share)
    counts = torch.empty(programs, _ROOM, dtype=torch.int32, device=x.device)
    numbers = torch.empty(5, programs, dtype=torch.float64, device=x.device)
    with on(x):
        kernels.summed[programs,](
            x, counts, numbers, size, share, programs, BINS=BINS, LOWEST=_LOWEST, ROOM=_ROOM, BLOCK=_BLOCK, num_warps=8
        )
        return Told(counts[:, :CELLS].sum(0), _merged(*numbers))


def _merged(count: Tensor, mean: Tensor, m2: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Chan's merge of what the programs found."""
    total = count.sum()
    middle = (count * mean).sum() / total  # NaN where nothing is finite
    spread = (m2 + count * (mean - middle).square()).sum()
    least, greatest = low.amin(), high.amax()
    some = total > 0
    nothing = torch.full_like(total, torch.nan)
    return torch.stack(
        (total, middle, torch.where(some, spread, 0.0), least.where(some, nothing), greatest.where(some, nothing))
    )
