"""What a forward and backward pass costs: the table that picks among offers, from runs of `benchmarks/kernels.py`.

The rows are rounded from a shared machine. A wrong one picks a slower offer, never another number.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import torch

from normscope.kernels.offer import Problem
from normscope.terms.spec import NormSpec

LEAST = 1 << 16  # below so many numbers no kernel beats ATen: the call itself is what costs


class Cost(NamedTuple):
    """Microseconds a call, and nanoseconds an element."""

    call: float
    element: float


# (offer, device, family, memory, dtype) → forward + backward without activation; two threads of an EPYC with
# AVX-512, torch 2.13. Memory is "channels_last" wherever the channels lie side by side.
_LIES, _LAST = "contiguous", "channels_last"
_F32, _BF16 = torch.float32, torch.bfloat16
COSTS: dict[tuple[str, str, str, str, torch.dtype], Cost] = {
    ("aten", "cpu", "NS", _LIES, _F32): Cost(45, 1.4),
    ("aten", "cpu", "NS", _LAST, _F32): Cost(45, 0.6),
    ("aten", "cpu", "NS", _LIES, _BF16): Cost(45, 1.0),
    ("aten", "cpu", "NS", _LAST, _BF16): Cost(45, 0.65),
    ("aten", "cpu", "CS", _LIES, _F32): Cost(45, 0.55),
    ("aten", "cpu", "CS", _LAST, _F32): Cost(45, 1.0),
    ("aten", "cpu", "CS", _LIES, _BF16): Cost(45, 0.6),
    ("aten", "cpu", "CS", _LAST, _BF16): Cost(45, 6.0),
    ("aten", "cpu", "S", _LIES, _F32): Cost(50, 1.15),
    ("aten", "cpu", "S", _LAST, _F32): Cost(60, 2.1),
    ("aten", "cpu", "S", _LIES, _BF16): Cost(50, 1.2),
    ("aten", "cpu", "S", _LAST, _BF16): Cost(60, 2.5),
    ("numba", "cpu", "NS", _LIES, _F32): Cost(190, 0.75),
    ("numba", "cpu", "NS", _LAST, _F32): Cost(240, 0.8),
    ("numba", "cpu", "NS", _LIES, _BF16): Cost(190, 0.6),
    ("numba", "cpu", "NS", _LAST, _BF16): Cost(240, 0.7),
    ("numba", "cpu", "CS", _LIES, _F32): Cost(190, 0.7),
    ("numba", "cpu", "CS", _LAST, _F32): Cost(190, 0.8),
    ("numba", "cpu", "CS", _LIES, _BF16): Cost(190, 0.6),
    ("numba", "cpu", "CS", _LAST, _BF16): Cost(190, 0.7),
    ("numba", "cpu", "S", _LIES, _F32): Cost(190, 0.7),
    ("numba", "cpu", "S", _LAST, _F32): Cost(190, 0.8),
    ("numba", "cpu", "S", _LIES, _BF16): Cost(190, 0.6),
    ("numba", "cpu", "S", _LAST, _BF16): Cost(190, 0.8),
}

# what ATen's functions for the activation and for the residual sum add, each
ADDED: dict[tuple[str, torch.dtype], Cost] = {("cpu", _F32): Cost(10, 0.65), ("cpu", _BF16): Cost(10, 0.35)}


def gains(spec: NormSpec, given: bool) -> tuple[bool, bool]:
    """Whether a kernel beats ATen alone on large float32 inputs on the CPU: on contiguous ones, and on others.

    Args:
        spec: over which axes.
        given: whether the statistics are given; a pass that only applies them is ATen's (1.2 to 2 times as fast).
    """
    family = _family(spec)
    installed = find_spec("numba") is not None

    def wins(memory: str) -> bool:
        rows = {row[0]: cost.element for row, cost in COSTS.items() if row[1:] == ("cpu", family, memory, _F32)}
        return installed and not given and "aten" in rows and min(rows.values()) < rows["aten"]

    return wins(_LIES), wins(_LAST)


def cost(name: str, problem: Problem) -> float | None:
    """Microseconds that the offer `name` is expected to take for a problem; None where nobody measured."""
    spec = problem.spec
    key = (name, problem.device, _family(spec), _memory(problem), problem.dtype)
    row = COSTS.get(key)
    applies_alone = problem.given and spec.activation is None and not problem.residual
    if row is None or (applies_alone and name not in ("aten", "reference")):
        return None
    call, element = row
    if name in ("aten", "reference"):
        kind = (problem.device, problem.dtype)
        more = ADDED.get(kind, Cost(0, 0))
        times = (spec.activation is not None) + problem.residual
        call, element = call + times * more[0], element + times * more[1]
    return call + element * problem.elements / 1e3


def _family(spec: NormSpec) -> str:
    """Over which axes, and "rms" where nothing is centred: layer norm is "C", RMS norm is "C rms"."""
    over = "".join([axis for axis in "NCS" if axis in spec.over])
    return f"{over} rms" if spec.scale == "rms" else over


def _memory(problem: Problem) -> str:
    """How the input lies, seen from its channels: those of (N, *S, C) and of (N, C) lie side by side."""
    last = problem.spec.layout == "channels_last" or len(problem.shape) == 2
    return "channels_last" if last and problem.memory == "contiguous" else problem.memory
