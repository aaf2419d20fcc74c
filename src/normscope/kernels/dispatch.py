"""Which kernel computes: ATen's where it serves the call, else the reference. The choice changes no number."""

from __future__ import annotations

from torch import Tensor

from normscope.kernels import native, reference
from normscope.kernels.cells import cells
from normscope.kernels.reference import Statistics
from normscope.terms.spec import NormSpec


def normalized(
    x: Tensor, spec: NormSpec, weight: Tensor | None, bias: Tensor | None, mask: Tensor | None = None
) -> Tensor:
    """The formula with the statistics of `x` itself, before the activation."""
    if mask is None and native.refuses(spec) is None:
        return native.normalized(x, spec, weight, bias)
    return _by_reference(x, spec, weight, bias, mask)[0]


def measured(
    x: Tensor, spec: NormSpec, weight: Tensor | None, bias: Tensor | None, mask: Tensor | None = None
) -> tuple[Tensor, Statistics]:
    """The formula with the statistics of `x` itself, before the activation, and those statistics (detached)."""
    if mask is None and "C" not in spec.over and native.refuses(spec) is None:
        return native.measured(x, spec, weight, bias)
    return _by_reference(x, spec, weight, bias, mask)


def applied(
    x: Tensor,
    spec: NormSpec,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None = None,
) -> Tensor:
    """The formula with given statistics, one a channel or one a group: (C,) or (G,), before the activation."""
    if mask is None and "C" not in spec.over and native.refuses(spec) is None:
        return native.applied(x, spec, mean, var, weight, bias)
    view = cells(x, spec)
    centre = view.along_channels(mean) if spec.center else None
    sigma = reference.root(view.along_channels(reference.wide(var)), spec) if spec.scale else None
    return reference.scale_and_shift(x, spec, centre, sigma, weight, bias, mask)


def _by_reference(
    x: Tensor, spec: NormSpec, weight: Tensor | None, bias: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Statistics]:
    seen = reference.measure(x, spec, mask)
    centre = seen.mean if spec.center else None
    sigma = reference.root(seen.var, spec) if spec.scale else None
    y = reference.scale_and_shift(x, spec, centre, sigma, weight, bias, mask)
    return y, Statistics(seen.mean.detach(), seen.var.detach(), seen.size)
