"""One call of ATen that is all of a normalization by the input's own statistics: for tensors so small that Python costs
more than the numbers do.

It is the same as the long way, `dispatch.normalized`, bit for bit. A call that it does not serve is answered None, or
by torch with an error; the long way then does it, or says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from normscope.kernels import native
from normscope.kernels.costs import Gains, gains
from normscope.terms.spec import NormSpec

Direct = Callable[[Tensor, "Tensor | None", "Tensor | None"], "Tensor | None"]  # of input, weight and bias
_HELD: dict[NormSpec, tuple[Direct | None, Gains]] = {}
_MANY = 1024


def direct(spec: NormSpec) -> tuple[Direct | None, Gains]:
    """The call for a description, without what follows the affine part, or None; and where a kernel may beat it."""
    if spec not in _HELD:
        if len(_HELD) >= _MANY:
            _HELD.clear()
        found = None if native.refuses(spec) else _WAYS.get((native.family(spec), spec.layout))
        _HELD[spec] = None if found is None else partial(found, spec), gains(spec, given=False)
    return _HELD[spec]


def fits(residual: object, x: Tensor) -> bool:
    """Whether `residual` is a plain tensor of the shape and dtype of `x`."""
    return type(residual) is Tensor and residual.shape == x.shape and residual.dtype is x.dtype


def cudnn(x: Tensor) -> bool:
    """Whether cuDNN may serve; on the host the answer is not read, and is slow to ask for."""
    return x.is_cpu or torch.backends.cudnn.enabled


def _layer(spec: NormSpec, x: Tensor, weight: Any, bias: Any) -> Tensor | None:
    return None if x.shape[-1] == 1 else torch.layer_norm(x, x.shape[-1:], weight, bias, spec.eps or 0.0)


def _rms(spec: NormSpec, x: Tensor, weight: Any, bias: Any) -> Tensor | None:
    if weight is not None and weight.dtype is not x.dtype:
        return None  # torch promotes
    return torch.rms_norm(x, x.shape[-1:], weight, spec.eps)


def _group(spec: NormSpec, x: Tensor, weight: Any, bias: Any) -> Tensor | None:
    if x.numel() <= x.shape[0] * spec.groups:
        return None
    return torch.group_norm(x, spec.groups, weight, bias, spec.eps or 0.0)


def _instance(spec: NormSpec, x: Tensor, weight: Any, bias: Any) -> Tensor | None:
    if x.numel() <= x.shape[0] * x.shape[1] or not x.is_contiguous():
        return None
    return torch.instance_norm(x, weight, bias, None, None, True, 0.0, spec.eps or 0.0, cudnn(x))


def _batch(spec: NormSpec, x: Tensor, weight: Any, bias: Any) -> Tensor | None:
    if x.numel() <= x.shape[1] or native.doubtful(x):
        return None
    return torch.batch_norm(x, weight, bias, None, None, True, 0.0, spec.eps or 0.0, cudnn(x))


# by family and layout
_WAYS: dict[tuple[str | None, str], Callable[[NormSpec, Tensor, Any, Any], Tensor | None]] = {
    ("layer", "channels_last"): _layer,
    ("rms", "channels_last"): _rms,
    ("group", "channels_first"): _group,
    ("instance", "channels_first"): _instance,
    ("batch", "channels_first"): _batch,
}
