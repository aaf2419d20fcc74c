"""ATen's fused functions, where they compute the formula.

`refuses` says in words what a description asks for that no fused function serves; what it does not refuse, `measured`
and `applied` compute, equal to the reference up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from normscope.kernels import reference
from normscope.kernels.cells import cells, transforming
from normscope.kernels.reference import Statistics
from normscope.terms.spec import NormSpec

Fused = Callable[[Tensor, NormSpec, "Tensor | None", "Tensor | None"], Tensor]

_MANY, _ULP = 1024, 2.0**-24
_LOST = 0.5  # of the bound n · ulp · |μ|/σ; what is lost is about a hundredth of the bound

_BATCH, _SAMPLE, _CHANNELS, _POSITIONS = (frozenset(axes) for axes in ("NS", "CS", "C", "S"))


def refuses(spec: NormSpec, casts_first: bool | None = None) -> str | None:
    """Why ATen does not serve `spec`, or None; `casts_first` as in `Problem`, None where no dtype is known."""
    if spec.eps_place != "inside":
        return f"ATen puts eps inside the root, not {spec.eps_place}"
    if spec.weight_offset or (spec.cast != "output" if casts_first is None else casts_first):
        return "ATen has no weight offset and casts last"
    if spec.eps == 0 and "N" in spec.over:
        return "ATen's batch norm asks for eps above zero"
    if _is_rms(spec):
        return None
    if not spec.center or spec.scale != "std" or spec.eps is None:
        return "ATen centres, and divides by the standard deviation"
    if _fused(spec) is None:
        return f"ATen has no function over {''.join(sorted(spec.over))} with the layout {spec.layout}"
    return None


def normalized(x: Tensor, spec: NormSpec, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The formula with the statistics of `x` itself."""
    fused = _rms_norm if _is_rms(spec) else _fused(spec)
    assert fused is not None, refuses(spec)
    return fused(x, spec, weight, bias)


def measured(x: Tensor, spec: NormSpec, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Statistics]:
    """The formula with the statistics of the batch, and those statistics.

    With momentum 1 ATen's running averages are this batch's own statistics, so the kernel that normalizes is also
    the one that measures. For statistics per sample, they are averaged over the samples, which is torch's rule.
    """
    # ATen wants its buffers in the dtype of the weight; without one, float32 or wider.
    dtype = weight.dtype if weight is not None else torch.promote_types(x.dtype, torch.float32)
    first = x if spec.layout == "channels_first" else x.movedim(-1, 1)
    mean, unbiased = torch.zeros(2, first.shape[1], dtype=dtype, device=x.device).unbind()
    function = F.batch_norm if "N" in spec.over else F.instance_norm
    y = _as(function(first, mean, unbiased, weight, bias, True, 1.0, spec.eps or 0.0), first)
    if doubtful(first) and lost(first, mean, unbiased.rsqrt()):
        return _by_formula(x, spec, weight, bias)
    size = x.numel() // max(mean.numel() if "N" in spec.over else mean.numel() * len(x), 1)
    view = cells(x, spec)
    seen = Statistics(view.along_channels(mean), view.along_channels(unbiased), size, corrected=True)
    return (y if first is x else y.movedim(1, -1)), seen


def averages(spec: NormSpec) -> bool:
    """Whether one call of ATen normalizes by the batch and blends its statistics into running ones, as `spec` asks."""
    usual = spec.train_from in ("batch", "input") and spec.infer_from in ("running", "cumulative")
    usual = usual and spec.unbiased and spec.accumulate == 1 and spec.layout == "channels_first"
    return usual and spec.over in (_BATCH, _POSITIONS) and refuses(spec) is None


def applied(x: Tensor, spec: NormSpec, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The formula with one given mean and variance a channel, each (C,)."""
    if spec.layout == "channels_last" and x.ndim > 2:
        first = F.batch_norm(x.movedim(-1, 1), mean, var, weight, bias, False, 0.0, spec.eps or 0.0)
        return first.movedim(1, -1)
    return F.batch_norm(x, mean, var, weight, bias, False, 0.0, spec.eps or 0.0)


def family(spec: NormSpec) -> str | None:
    """Which of ATen's functions takes the statistics that `spec` asks for."""
    if spec.over == _CHANNELS:
        return "rms" if _is_rms(spec) else "layer" if spec.groups == 1 else None
    return {_BATCH: "batch", _SAMPLE: "group", _POSITIONS: "instance"}.get(spec.over)


def _is_rms(spec: NormSpec) -> bool:
    return spec.scale == "rms" and not spec.center and spec.over == _CHANNELS and spec.groups == 1 and not spec.bias


def _fused(spec: NormSpec) -> Fused | None:
    if spec.over == _BATCH:
        return _batch_norm
    if spec.over == _CHANNELS:
        return _layer_norm if spec.groups == 1 else None
    if spec.layout == "channels_first":
        return _group_norm if spec.over == _SAMPLE else _instance_norm if spec.over == _POSITIONS else None
    return None


def _batch_norm(x: Tensor, spec: NormSpec, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    first = x if spec.layout == "channels_first" else x.movedim(-1, 1)
    if doubtful(first):
        y, mean, rstd = torch.native_batch_norm(first, weight, bias, None, None, True, 0.0, spec.eps or 0.0)
        if lost(first, mean, rstd):
            return _by_formula(x, spec, weight, bias)[0]
    else:
        y = F.batch_norm(first, None, None, weight, bias, True, 0.0, spec.eps or 0.0)
    return y if first is x else y.movedim(1, -1)


def doubtful(x: Tensor) -> bool:
    """Whether ATen adds up many numbers of each channel of `x` (N, C, *) in one float32, one after the other.

    It does on the host where the channels lie side by side. At a mean of 10⁴ deviations 65,536 numbers give a mean that
    is off by 3 deviations, 4,096 by 0.02, and 400 by 0.002.
    """
    if x.numel() <= _MANY * x.shape[1] or not x.is_cpu or x.dtype is torch.float64 or type(x) is not Tensor:
        return False
    aside = x.numel() == len(x) * x.shape[1] or not x.is_contiguous()
    return aside and not torch.compiler.is_compiling() and not transforming()


def lost(x: Tensor, mean: Tensor, rstd: Tensor) -> bool:
    """Whether such a sum may have lost more than a hundredth of a deviation, by the (C,) mean and 1/σ it gave."""
    far = (mean.detach().abs() * rstd).amax().item()  # NaN where there is nothing to save
    return far * (x.numel() // x.shape[1]) * _ULP > _LOST


def _by_formula(x: Tensor, spec: NormSpec, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Statistics]:
    seen = reference.measure(x, spec)
    y = reference.scale_and_shift(x, spec, seen.mean, reference.root(seen.var, spec), weight, bias)
    return y, Statistics(seen.mean.detach(), seen.var.detach(), seen.size)


def _layer_norm(x: Tensor, spec: NormSpec, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if spec.layout == "channels_last" or x.ndim == 2:
        return F.layer_norm(x, x.shape[-1:], weight, bias, spec.eps or 0.0)
    return _as(F.layer_norm(x.movedim(1, -1), x.shape[1:2], weight, bias, spec.eps or 0.0).movedim(-1, 1), x)


def _rms_norm(x: Tensor, spec: NormSpec, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if spec.layout == "channels_last" or x.ndim == 2:
        return F.rms_norm(x, x.shape[-1:], weight, spec.eps)
    return _as(F.rms_norm(x.movedim(1, -1), x.shape[1:2], weight, spec.eps).movedim(-1, 1), x)


def _as(y: Tensor, x: Tensor) -> Tensor:
    """`y` in the memory layout of `x`, where ATen left it."""
    if x.is_contiguous():
        return y.contiguous()
    if x.ndim in (4, 5):
        last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        return y.contiguous(memory_format=last) if x.is_contiguous(memory_format=last) else y
    return y


def _group_norm(x: Tensor, spec: NormSpec, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return F.group_norm(x, spec.groups, weight, bias, spec.eps or 0.0)


def _instance_norm(x: Tensor, spec: NormSpec, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return _as(F.instance_norm(x, None, None, weight, bias, True, 0.0, spec.eps or 0.0), x)
