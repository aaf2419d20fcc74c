"""`kept`: what a normalization holds in memory between its forward and its backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.kernels import fused
from normscope.kernels.explain import posed
from normscope.terms.spec import NormSpec


def kept(module_or_spec: nn.Module | NormSpec, x: Tensor, *, residual: Tensor | None = None) -> dict[str, int]:
    """Bytes that stay in memory from the forward to the backward pass of training, by each offer that serves.

    The output, and all that autograd saves beside the parameters, each storage once; the input counts where it is
    saved. "aten" is what torch's own functions keep. Every offer computes once, on copies; nothing of the layer
    changes.

    Args:
        module_or_spec: a layer of `normscope.nn` that is one normalization, or a description.
        x: an input.
        residual: what is added before the activation, if anything is.

    Raises:
        SpecError: the module has no description.

    >>> import torch, normscope as ns
    >>> ns.kernels.kept(ns.nn.GroupNorm(2, 4), torch.ones(1, 4, 2))["aten"]  # input, output, two means and two 1/σ
    80
    """
    problem, operands = posed(module_or_spec, _copied(x), None if residual is None else _copied(residual), None, True)
    weight, bias = (None if value is None else _copied(value) for value in operands[1:3])
    found: dict[str, int] = {}
    for offer in fused.OFFERS:
        if offer.refuses(problem) is None and offer.name not in found:
            # a copy that is no leaf, as a convolution would hand over: in place, it may be written over
            added = None if operands.residual is None else operands.residual * 1
            these = operands._replace(x=operands.x * 1, weight=weight, bias=bias, residual=added)
            found[offer.name] = _held(offer, problem, these)
    return found


def _copied(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def _held(offer: Any, problem: Any, operands: Any) -> int:
    apart = {value.untyped_storage().data_ptr() for value in operands[1:3] if value is not None}
    seen: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in apart:
            seen[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        note(fused.run(offer, problem, operands)[0])
    return sum(seen.values())
