"""What a forward and backward pass costs, as measured by `benchmarks/kernels.py`: the table that picks among offers."""

from __future__ import annotations

from typing import NamedTuple

import torch

from normscope.kernels.offer import Problem
from normscope.terms.spec import NormSpec

LEAST = 1 << 16  # below so many numbers no kernel beats ATen: the call itself is what costs


class Cost(NamedTuple):
    """Microseconds a call, and nanoseconds an element."""

    call: float
    element: float


# (offer, device, statistics over, memory, dtype) → forward + backward; two threads of an EPYC with AVX-512, torch 2.13
COSTS: dict[tuple[str, str, str, str, torch.dtype], Cost] = {}

# what ATen's functions for the activation and for the residual sum add, each
ADDED: dict[tuple[str, torch.dtype], Cost] = {}


def known(name: str, spec: NormSpec) -> bool:
    """Whether anything was measured of the offer `name` for statistics over the axes of `spec`."""
    over = _over(spec)
    return any(row[0] == name and row[2] == over for row in COSTS)


def cost(name: str, problem: Problem) -> float | None:
    """Microseconds that the offer `name` is expected to take for a problem; None where nobody measured."""
    spec = problem.spec
    row = COSTS.get((name, problem.device, _over(spec), problem.memory, problem.dtype))
    if row is None:
        return None
    call, element = row
    if name in ("aten", "reference"):
        more = ADDED.get((problem.device, problem.dtype), Cost(0.0, 0.0))
        times = (spec.activation is not None) + problem.residual
        call, element = call + times * more.call, element + times * more.element
    return call + element * problem.elements / 1e3


def _over(spec: NormSpec) -> str:
    return "".join([axis for axis in "NCS" if axis in spec.over])
