"""What a forward and backward pass costs: how dispatch reads the measured table, `cost_table`.

A wrong row picks a slower offer, never another number.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from math import inf

import torch
from torch import Tensor

from normscope.kernels.cost_table import COSTS
from normscope.kernels.offer import Problem
from normscope.terms.spec import NormSpec

Gains = dict[torch.dtype, tuple[float, float]]
LEAST = 1 << 16  # below so many numbers no kernel beats ATen: the call itself is what costs

_SLOPED = {"leaky_relu": "relu", "gelu_tanh": "gelu"}  # what costs as much as another that was measured


def gains(spec: NormSpec, given: bool, residual: bool = False) -> Gains:
    """Above how many numbers a kernel may beat ATen on the CPU, by dtype: a contiguous input, another one.

    Args:
        spec: over which axes, and the activation.
        given: whether the statistics are given; a pass that only applies them is ATen's (1.2 to 2 times as fast).
        residual: whether there is one.
    """
    if find_spec("numba") is None or (given and spec.activation is None and not residual):
        return {}
    kind = _SLOPED.get(spec.activation or "", spec.activation or "")
    kinds = ("relu + residual",) if residual else (kind, "relu")

    def above(memory: str, dtype: str) -> float:
        key, last = ("cpu", _family(spec), memory, dtype), 0
        for one in kinds:
            pairs = list(zip(COSTS.get(("numba", *key, one), ()), COSTS.get(("aten", *key, one), ())))
            for (size, ours), (_, theirs) in pairs:
                if ours < theirs:
                    return last
                last = size
            if pairs:
                return inf
        return inf

    found: Gains = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        side_by_side = above("channels_last", name)
        found[dtype] = side_by_side if spec.layout == "channels_last" else above("contiguous", name), side_by_side
    return found


def may_gain(found: Gains, x: Tensor) -> bool:
    """Whether a kernel may be cheaper than ATen for `x`, so that the table must be looked at."""
    if not x.is_cpu:
        return measured(x.device.type)
    contiguous, otherwise = found.get(x.dtype, (inf, inf))
    return x.numel() > (contiguous if x.ndim > 2 and x.is_contiguous() else otherwise)


@lru_cache
def measured(device: str) -> bool:
    """Whether anything was measured on such a device."""
    return any(key[1] == device for key in COSTS)


def cost(name: str, problem: Problem) -> float | None:
    """Microseconds that the offer `name` is expected to take for a problem; None where nobody measured."""
    spec = problem.spec
    applies_alone = problem.given and spec.activation is None and not problem.residual
    if applies_alone and name != "aten":
        return None
    kind = _SLOPED.get(spec.activation or "", spec.activation or "")
    # what torch.compile makes of ATen's functions is another program
    compiled = ("compile",) if name == "aten" and torch.compiler.is_compiling() else ()
    for one in (*compiled, name):
        found = _expected(one, problem, kind)
        if found is not None:
            return found
    return None


def _expected(name: str, problem: Problem, kind: str) -> float | None:
    dtype = str(problem.dtype).removeprefix("torch.")
    key = (name, problem.device, _family(problem.spec), _memory(problem), dtype)
    points = COSTS.get((*key, kind)) or COSTS.get((*key, "relu"))
    if points is None:
        return None
    found = _at(points, problem.elements())
    if problem.residual:
        with_sum, without = COSTS.get((*key, "relu + residual")), COSTS.get((*key, "relu"))
        if with_sum is not None and without is not None:
            found += _at(with_sum, problem.elements()) - _at(without, problem.elements())
    return found


def _at(points: tuple[tuple[int, float], ...], elements: int) -> float:
    """On the line between the measured points; before the first as much as there, behind the last in proportion."""
    after = 0
    while after < len(points) and points[after][0] <= elements:  # which torch.compile can follow
        after += 1
    if after == 0:
        return points[0][1]
    size, spent = points[after - 1]
    if after == len(points):
        return spent * elements / size
    size_after, spent_after = points[after]
    return spent + (spent_after - spent) * (elements - size) / (size_after - size)


def _family(spec: NormSpec) -> str:
    """Over which axes, and "rms" where nothing is centred: layer norm is "C", RMS norm is "C rms"."""
    over = "".join([axis for axis in "NCS" if axis in spec.over])
    return f"{over} rms" if spec.scale == "rms" else over


def _memory(problem: Problem) -> str:
    """How the input lies, seen from its channels: those of (N, *S, C) and of (N, C) lie side by side."""
    last = problem.spec.layout == "channels_last" or len(problem.shape) == 2
    return "channels_last" if last and problem.memory == "contiguous" else problem.memory
