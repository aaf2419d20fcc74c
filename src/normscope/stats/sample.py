"""A few thousand elements that stand for a tensor: every k-th in memory, k co-prime to the tensor's sizes."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def strided(x: torch.Tensor, n: int = 8192) -> torch.Tensor:
    """At most `n` elements of `x`, 1-D, detached, the same ones every time; a view unless `x` has gaps or overlaps.

    The stride shares no factor with any size of `x`, so no channel and no position is left out for being even.
    """
    x = x.detach()
    if not x.is_sparse and _dense(x):
        flat = x.as_strided((x.numel(),), (1,))
        return flat[:: _stride(x.numel(), n)]
    import torch

    if x.layout != torch.strided:
        return strided(x.to_dense(), n)
    return x.take(torch.arange(0, x.numel(), _stride(x.numel(), n), device=x.device))


def _stride(numel: int, n: int) -> int:
    if numel <= n:
        return 1
    stride = -(-numel // n)
    while gcd(stride, numel) != 1:
        stride += 1
    return stride


def _dense(x: torch.Tensor) -> bool:
    """Whether the elements fill one stretch of memory, each once, in some order of the axes."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
