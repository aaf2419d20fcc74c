"""The arithmetic of folding: a norm as one factor and one offset a channel, and the layer that takes them up."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from normscope.anatomy.recognize import activation_of, spec_of
from normscope.terms.activations import ACTIVATIONS
from normscope.treat.fused import without_activation
from normscope.treat.measure import difference

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = 1e-9  # of a standard deviation, in float64


def line(norm: nn.Module, rank: int) -> tuple[Tensor, Tensor] | None:
    """The factor and the offset of each channel (C,) in float64; None when the norm is nothing so simple.

    Measured, so that every class of norm is read alike. `rank` is the number of axes of its input.
    """
    spec = spec_of(norm)
    mean = getattr(norm, "running_mean", None)
    if spec is not None and spec.scale is None and mean is None:
        mean = getattr(norm, "weight", None)
    if spec is None or not isinstance(mean, Tensor):
        return None
    twin = copy.deepcopy(without_activation(norm)).double().eval()
    shape = [1] * rank
    shape[1 if spec.layout == "channels_first" else -1] = mean.numel()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(mean.device)
    with torch.no_grad():
        offset = twin(torch.zeros_like(x))
        factor = twin(torch.ones_like(x)) - offset
        straight = difference(twin(x), factor * x + offset) < LINEAR
    return (factor.flatten(), offset.flatten()) if straight else None


def take_up(layer: Any, factor: Tensor, offset: Tensor, *, behind: bool) -> None:
    """Give `layer` the weight and the bias with which it does the norm's work.

    The norm stands `behind` it or before it. The parameters are new ones: another module may share the old ones.
    """
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    weight = layer.weight.detach().double()
    bias = weight.new_zeros(outputs) if layer.bias is None else layer.bias.detach().double()
    weight, bias = (_with_norm_behind if behind else _with_norm_before)(layer, weight, bias, factor, offset)
    learned = layer.weight.requires_grad
    layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=learned)
    layer.weight = nn.Parameter(weight.to(layer.weight), requires_grad=learned)


def left_over(norm: nn.Module) -> nn.Module:
    """What stays where the norm was: its activation function, or nothing."""
    spec = spec_of(norm)
    if spec is None or spec.activation is None:
        return nn.Identity()
    held = (part for part in norm.children() if activation_of(part) is not None)
    return next(held, None) or getattr(nn, ACTIVATIONS[spec.activation].classes[0])()


def pads_with_zeros(layer: Any) -> bool:
    """Whether `layer` adds zeros to its input, which an offset in front of it does not reach."""
    if isinstance(layer, TRANSPOSED):
        return True
    if not isinstance(layer, CONVOLUTIONS) or layer.padding_mode != "zeros":
        return False
    return layer.padding != "valid" if isinstance(layer.padding, str) else any(layer.padding)


def _with_norm_behind(
    layer: Any, weight: Tensor, bias: Tensor, factor: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    if isinstance(layer, TRANSPOSED):  # (inputs, outputs of a group, *kernel)
        scale = factor.view(layer.groups, 1, -1, *[1] * (weight.ndim - 2))
        weight = (weight.unflatten(0, (layer.groups, -1)) * scale).flatten(0, 1)
    else:  # (outputs, inputs of a group, *kernel)
        weight = weight * factor.view(-1, *[1] * (weight.ndim - 1))
    return weight, bias * factor + offset


def _with_norm_before(
    layer: Any, weight: Tensor, bias: Tensor, factor: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    if isinstance(layer, TRANSPOSED):  # its offset is zero, see `pads_with_zeros`
        return weight * factor.view(-1, *[1] * (weight.ndim - 1)), bias
    groups = getattr(layer, "groups", 1)
    blocks = weight.unflatten(0, (groups, -1))
    shape = (groups, 1, -1, *[1] * (weight.ndim - 2))
    shifts = (blocks * offset.view(shape)).flatten(2).sum(2).flatten()
    return (blocks * factor.view(shape)).flatten(0, 1), bias + shifts
