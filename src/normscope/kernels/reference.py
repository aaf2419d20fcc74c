"""The formula, once: ``h = f(g · (x − μ)/σ + b + r)``. This file is the public specification of every kernel.

Statistics are taken in two passes, in float32 for half types and in the input's own dtype otherwise; never as
E[x²] − E[x]². Every faster kernel is tested against this one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from normscope.kernels.cells import Cells, cells, counted
from normscope.terms.errors import SpecError
from normscope.terms.spec import NormSpec

# E|x| of a standard normal is √(2/π): with this factor the mean absolute deviation estimates the standard deviation
# (Hoffer et al. 2018, "Norm matters").
L1_GAIN = math.sqrt(math.pi / 2)


class Statistics(NamedTuple):
    """What was measured of a tensor, shaped to broadcast against its split view (N, G, c, S…).

    Attributes:
        mean: μ, also where the description does not centre.
        var: σ² before eps.
        size: how many cells each statistic was taken over; a tensor where it is known on the device only.
        corrected: whether `var` is divided by size − 1; `measure` divides by the size.
    """

    mean: Tensor
    var: Tensor
    size: Tensor | int
    corrected: bool = False

    def biased(self) -> Tensor:
        """The variance divided by the size."""
        return self.var / self._correction() if self.corrected else self.var

    def unbiased(self) -> Tensor:
        """The variance divided by size − 1; of a single cell, which shows no spread, the biased one (zero)."""
        return self.var if self.corrected else self.var * self._correction()

    def _correction(self) -> Tensor | float:
        if isinstance(self.size, int):
            return max(self.size, 1) / max(self.size - 1, 1)
        return self.size / (self.size - 1).clamp(min=1)


def wide(x: Tensor) -> Tensor:
    """`x` in the dtype in which it is measured: float32 for half types, its own otherwise."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def measure(x: Tensor, spec: NormSpec, mask: Tensor | None = None) -> Statistics:
    """The statistics of `x` over the axes of `spec`, in float32 or wider.

    Args:
        x: (N, C, *S), or (N, *S, C) where the description says so.
        spec: over which axes, about what centre, and what σ is.
        mask: (N, *S), boolean, or (N,) lengths; the others are not counted. None counts all.

    Raises:
        SpecError: σ is a matrix ("whiten"), which no pair of numbers holds.
    """
    view = cells(x, spec)
    data = view.split(wide(x))
    if mask is None:
        mean = data.mean(view.dims, keepdim=True)
        return Statistics(mean, _spread(data - mean if _central(spec) else data, view, spec), view.count(data))
    mask = view.along_positions(counted(x, spec, mask))
    inner = data.shape[view.axis + 1] if view.axis + 1 in view.dims else 1  # a mask has no channels
    others = [dim for dim in view.dims if dim != view.axis + 1]
    count = (mask.sum(others, keepdim=True) if others else mask.long()) * inner
    data = torch.where(mask, data, 0.0)
    share = mask.to(data.dtype) / count.clamp(min=1)
    mean = (data * share).sum(view.dims, keepdim=True)
    deviation = torch.where(mask, data - mean, 0.0) if _central(spec) else data
    return Statistics(mean, _spread(deviation, view, spec, share), count)


def merged(parts: Statistics, *dims: int) -> Statistics:
    """The statistics of the cells of all `parts` along `dims`, which hold equally many (Chan et al. 1979)."""
    mean = parts.mean.mean(dims, keepdim=True)
    between = (parts.mean - mean).square().mean(dims, keepdim=True)
    number = math.prod([parts.mean.shape[dim] for dim in dims])
    return Statistics(mean, parts.var.mean(dims, keepdim=True) + between, parts.size * number)


def _central(spec: NormSpec) -> bool:
    return spec.scale != "rms" and (spec.center or spec.scale == "std")


def _spread(deviation: Tensor, view: Cells, spec: NormSpec, share: Tensor | None = None) -> Tensor:
    """σ² of the deviations: their mean square, or the square of what else `scale` asks for."""

    def mean(values: Tensor) -> Tensor:
        if share is None:
            return values.mean(view.dims, keepdim=True)
        return (values * share).sum(view.dims, keepdim=True)

    if spec.scale in ("std", "rms", None):
        return mean(deviation.square())
    if spec.scale == "l1":
        return (mean(deviation.abs()) * L1_GAIN).square()
    if spec.scale == "l2":
        return deviation.square().sum(view.dims, keepdim=True)
    if spec.scale == "max":
        return deviation.abs().amax(view.dims, keepdim=True).square()
    raise SpecError(
        f"A normalization with scale={spec.scale!r} was asked of the formula for scalar statistics.",
        found={"scale": spec.scale},
        because="whitening divides by a matrix",
        do="use normscope.nn.DecorrelatedBatchNorm or normscope.nn.IterNorm",
    )


def root(var: Tensor, spec: NormSpec) -> Tensor:
    """σ: the root of `var` with eps in its place."""
    eps = torch.finfo(var.dtype).eps if spec.eps is None else spec.eps
    if spec.eps_place == "inside":
        return (var + eps).sqrt()
    if spec.eps_place == "floor":
        return var.clamp(min=eps * eps).sqrt()
    return var.sqrt() + eps


def scale_and_shift(
    x: Tensor,
    spec: NormSpec,
    mean: Tensor | None,
    sigma: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """``g · (x − μ)/σ + b`` with the given μ and σ; where `mask` is False, `x` itself."""
    view = cells(x, spec)
    y = view.split(wide(x))
    if mask is not None:
        mask = view.along_positions(counted(x, spec, mask))
        # what stands there (NaN, perhaps) must not reach the gradient of μ and σ
        y = torch.where(mask, y, 0.0)
    if mean is not None:
        y = y - mean
    if sigma is not None:
        y = y * sigma.reciprocal()  # one division a statistic, not one a cell
    if spec.cast == "normalized":
        y = y.to(x.dtype)
    if weight is not None:
        weight = weight if spec.cast == "normalized" else wide(weight)
        y = y * view.along_channels(weight + spec.weight_offset if spec.weight_offset else weight)
    if bias is not None:
        y = y + view.along_channels(bias if spec.cast == "normalized" else wide(bias))
    if mask is not None:
        y = torch.where(mask, y, view.split(x))
    return view.join(y).to(x.dtype)


def activate(y: Tensor, spec: NormSpec) -> Tensor:
    """Apply f of the formula."""
    if spec.activation is None:
        return y
    function = _gelu_tanh if spec.activation == "gelu_tanh" else getattr(torch.nn.functional, spec.activation, None)
    if function is None:
        raise SpecError(
            "A normalization was described with an activation that torch does not have.",
            found={"activation": repr(spec.activation)},
            because="it is named as in torch.nn.functional",
            do='use "relu", "gelu", "silu"…, or None',
        )
    return function(y)


def _gelu_tanh(y: Tensor) -> Tensor:
    return torch.nn.functional.gelu(y, approximate="tanh")


def finish(y: Tensor, x: Tensor, spec: NormSpec, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """``f(y + r)``: what follows the normalization `y` of `x`; where `mask` is False, `x` itself.

    In half types this rounds after each operation. A kernel that rounds once is nearer to the formula.
    """
    if residual is None and spec.activation is None:
        return y
    h = activate(y if residual is None else y + residual, spec)
    if mask is None:
        return h
    view = cells(x, spec)
    return view.join(torch.where(view.along_positions(counted(x, spec, mask)), view.split(h), view.split(x)))


def normalize(
    x: Tensor,
    spec: NormSpec,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    statistics: Statistics | None = None,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``f(g · (x − μ)/σ + b + r)``, with the statistics of `x` itself or with those given.

    Args:
        x: (N, C, *S), or (N, *S, C) where the description says so.
        spec: the description; where statistics come from is not read here.
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        statistics: what to use in place of the statistics of `x`.
        mask: (N, *S), boolean, or (N,) lengths; other cells are neither counted nor written.
        residual: r, of the shape of `x`, or None for 0; it takes no part in the statistics.

    Returns:
        A tensor of the shape, dtype and strides of `x`.

    >>> x = torch.tensor([[1.0, 3.0]])
    >>> normalize(x, NormSpec(over="C", train_from="input", infer_from="input", eps=0.0))
    tensor([[-1.,  1.]])
    """
    if statistics is None and (spec.center or spec.scale):
        statistics = measure(x, spec, mask)
    mean = statistics.mean if statistics is not None and spec.center else None
    sigma = root(statistics.var, spec) if statistics is not None and spec.scale else None
    return finish(scale_and_shift(x, spec, mean, sigma, weight, bias, mask), x, spec, residual, mask)
