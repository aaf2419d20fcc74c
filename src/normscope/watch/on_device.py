"""Summaries of what lies on a GPU, by one kernel for all samples of a length; bins as torch's, moments to rounding.

Where the kernel does not serve, or cannot be built on this machine (it asks for a C compiler), torch computes them.
"""

from __future__ import annotations

from torch import Tensor

from normscope.kernels.triton import summary

_broken: list[Exception] = []  # why the kernel is not asked again in this process


def told(rows: Tensor) -> Tensor | None:
    """Of each row of `rows`, (R, n), what `normscope.stats.rows.measured` asks for, on its device; None: ask torch."""
    if not is_served(rows) or _broken or not rows.numel() or summary.refuses(rows[0]) is not None:
        return None
    try:
        return summary.of_rows(rows)
    except Exception as error:  # watching must not end a training
        _broken.append(error)
        return None


def is_served(x: Tensor) -> bool:
    """Whether a kernel may read `x`."""
    return x.is_cuda
