"""A few thousand elements that stand for a tensor: every k-th one in memory, for a k that meets every axis evenly."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, count
from math import gcd
from operator import mul
from typing import TYPE_CHECKING

from normscope.stats.values import in_memory_order, values

if TYPE_CHECKING:
    import torch


def strided(x: torch.Tensor, n: int = 8192) -> torch.Tensor:
    """At most `n` elements of `x`, 1-D, detached, the same ones every time; all of them when there are no more.

    Every k-th element in memory, so a view, unless `x` has gaps or overlaps; then it is every k-th in index order.
    k is about x.numel() / n and shares no factor with any size of `x`, so no axis is met at even places only.
    """
    x = values(x)
    flat = in_memory_order(x)
    if flat is not None:
        order = sorted(zip(x.stride(), x.shape))
        return flat[:: stride(tuple(size for _, size in order), n)]
    import torch

    places = torch.arange(0, x.numel(), stride(tuple(x.shape[::-1]), n), device=x.device)
    return x.take(places)


@lru_cache(maxsize=4096)
def stride(sizes: tuple[int, ...], n: int) -> int:
    """The step through a tensor of these `sizes`, innermost first, that samples at most `n` elements most evenly.

    Of strides up to an eighth above the least possible, all co-prime to the sizes, the one is taken whose widest gap
    is the narrowest, in every period (one row, one plane, one channel …) of the tensor. A stride that is merely
    co-prime can be close to a multiple of a period, and then walks through a part of it only.
    """
    *periods, numel = accumulate(sizes, mul, initial=1)
    least = max(1, -(-numel // n))
    if least == 1:
        return 1
    spread = range(least, least + least // 8 + 1, max(1, least // 256))
    candidates = {next(k for k in count(start) if gcd(k, numel) == 1) for start in spread}

    def unevenness(k: int) -> float:
        taken = -(-numel // k)
        return max((widest_gap(k, period, taken) * min(taken, period) / period for period in periods), default=1.0)

    return min(sorted(candidates), key=unevenness)


def widest_gap(step: int, period: int, steps: int) -> int:
    """The widest gap on a circle of `period` places between the places 0, step, 2·step, … of `steps` steps.

    By the three-gap theorem (Sós 1958): the gaps have at most three widths, found as in Euclid's algorithm.
    """
    ahead, behind = step % period, -step % period  # the nearest places on either side of 0, and who is there
    if ahead == 0 or steps < 2:
        return period
    who_ahead = who_behind = 1
    while who_ahead + who_behind < steps and ahead and behind:
        if ahead > behind:
            ahead, who_ahead = ahead - behind, who_ahead + who_behind
        else:
            behind, who_behind = behind - ahead, who_behind + who_ahead
    return max(ahead, behind) if who_ahead + who_behind == steps else ahead + behind
