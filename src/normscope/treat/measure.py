"""How far two outputs lie apart, in one number."""

from __future__ import annotations

import math
from typing import Any

import torch

from normscope.anatomy.batch import tensors


def difference(output: Any, reference: Any) -> float:
    """The root mean square of `output` − `reference`, in standard deviations of `reference`, in float64.

    Outputs may be tensors or any structure of tensors: the worst floating tensor counts. A constant reference is
    measured in its own magnitude; 0 where both are equal, infinity where a number is not finite or a shape differs.
    """
    pairs = list(zip(_floating(output), _floating(reference)))
    return max((_apart(one, other) for one, other in pairs), default=math.nan)


def _floating(output: Any) -> list[torch.Tensor]:
    return [tensor.detach().double() for tensor in tensors(output) if tensor.is_floating_point() and tensor.numel()]


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape:
        return math.inf
    distance = float((one - other).square().mean().sqrt())
    if distance == 0:
        return 0.0
    unit = float(other.var(correction=0).sqrt()) or float(other.square().mean().sqrt())
    return distance / unit if unit and math.isfinite(distance / unit) else math.inf
