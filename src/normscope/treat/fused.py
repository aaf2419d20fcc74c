"""Norms with their activation inside: what stands in such a module, and the same module without the activation."""

from __future__ import annotations

import copy

import torch
from torch import nn

from normscope.anatomy.recognize import activation_of, spec_of
from normscope.kernels.reference import activate
from normscope.norms.module import Norm
from normscope.terms.spec import NormSpec
from normscope.treat.measure import difference

_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
ALIKE = 1e-6  # of a standard deviation, between an activation module and torch's function of its name


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
    if spec is None or spec.activation is None:
        return norm
    bare = copy.deepcopy(norm).eval()
    if isinstance(bare, Norm):
        bare.spec = spec.but(activation=None)
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
