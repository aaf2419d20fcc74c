"""Norms with their activation inside: what stands in such a module, and the same module without the activation.

The threshold max(y, τ) of filter response normalization counts as one, with a learned number a channel.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from normscope.anatomy.recognize import activation_of, spec_of
from normscope.kernels.reference import activate
from normscope.norms.module import Norm
from normscope.norms.sample import FilterResponseNorm
from normscope.terms.spec import NormSpec
from normscope.treat.measure import difference

_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
ALIKE = 1e-6  # of a standard deviation, between an activation module and torch's function of its name


class Thresholded(Norm):
    """A norm that was converted from one with a threshold, and keeps it: max(y, τ), τ (C,) learned."""

    tau: Tensor | None

    def __init__(self, spec: NormSpec, channels: int, tau: nn.Parameter | None, **place: Any) -> None:
        super().__init__(spec, channels, **place)
        self.register_parameter("tau", tau)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The normalized input, or τ where that is larger."""
        y = super().forward(*args, **kwargs)
        if self.tau is None:
            return y
        shape = [1] * y.ndim
        shape[1 if self.spec.layout == "channels_first" else -1] = -1
        return torch.maximum(y, self.tau.view(shape).to(y.dtype))


def threshold_of(module: nn.Module) -> nn.Parameter | None:
    """τ of a norm that has one."""
    tau = getattr(module, "tau", None)
    return tau if isinstance(module, Thresholded | FilterResponseNorm) and isinstance(tau, nn.Parameter) else None


def unlike(module: nn.Module, spec: NormSpec) -> str | None:
    """What `module` holds beside the one norm and the one activation that `spec` describes; None when nothing."""
    for name, part in module.named_children():
        if isinstance(part, _IDLE):
            if getattr(part, "p", 0.0):
                return f"it holds a dropout (`{name}`), which a norm in its place would drop"
        elif activation_of(part) is None or spec.activation is None:
            return f"{type(module).__name__} holds further modules (`{name}`), which a norm in its place would drop"
        elif not _computes(part, spec):
            return f"its activation (`{name}`) is not {spec.activation} as torch computes it by default"
    return None


def without_activation(norm: nn.Module) -> nn.Module:
    """A copy of `norm` in evaluation mode that stops before its activation; `norm` itself where it has none."""
    spec = spec_of(norm)
    if spec is None or (spec.activation is None and threshold_of(norm) is None):
        return norm
    bare = copy.deepcopy(norm).eval()
    if isinstance(bare, Norm):
        bare.spec = spec.but(activation=None)
    if threshold_of(bare) is not None:
        bare.register_parameter("tau", None)
    for name, part in list(bare.named_children()):
        if activation_of(part) is not None:
            setattr(bare, name, nn.Identity())
    for hooks in (bare._forward_hooks, bare._forward_pre_hooks):
        hooks.clear()
    return bare


def _computes(part: nn.Module, spec: NormSpec) -> bool:
    """Whether `part` computes the function of the description."""
    x = torch.linspace(-8, 8, 65)
    twin = copy.deepcopy(part).cpu().float().eval()
    with torch.no_grad():
        return difference(twin(x.clone()), activate(x, spec)) < ALIKE
