"""The networks of the training claims, each with its norm by name. Arms of one seed draw the same weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from normscope import nn as norms
from normscope.terms.activations import ACTIVATIONS
from normscope.terms.catalog import CATALOG

NONE = "none"
_WEIGHTS = {"weight_norm": norms.weight_norm, "weight_standardization": norms.weight_standardization}
_GROUPS = 8
_FUNCTIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": nn.LeakyReLU,
    "linear": nn.Identity,
}


def norm_of(name: str, channels: int, *, affine: bool = True, rank: int = 2) -> nn.Module:
    """A norm for (N, C) or (N, C, H, W) by its name in the catalog; nothing for "none" and for norms of weights."""
    if name in (NONE, "cosine", *_WEIGHTS):
        return nn.Identity()
    spec = CATALOG["LayerNorm2d" if name == "LayerNorm" and rank > 2 else name]
    spec = spec.but(affine=affine and spec.affine, bias=affine and spec.bias)
    if spec.groups > 1:
        spec = spec.but(groups=math.gcd(channels // 2, _GROUPS))  # a group of one channel would be InstanceNorm
    return norms.build(spec, channels, rank=rank)


def weighted(layer: nn.Module, name: str) -> nn.Module:
    """The layer with its weights reparametrized, where the norm is one of weights."""
    return _WEIGHTS[name](layer) if name in _WEIGHTS else layer


def mlp(
    inputs: int,
    *,
    depth: int,
    width: int,
    activation: str = "relu",
    norm: str = NONE,
    after: bool = False,
    affine: bool = True,
    dropout: float = 0.0,
    gain: float | None = None,
    outputs: int = 10,
) -> nn.Sequential:
    """`depth` hidden layers. The norm stands before the activation, or after it; the output layer has none.

    `gain` is the deviation of the weights times √fan-in; None is the one made for the activation.
    """
    gain = ACTIVATIONS[activation].gain if gain is None and activation in ACTIVATIONS else gain or 1.0
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in in (inputs, *[width] * (depth - 1)):
        linear = norms.CosineLinear(fan_in, width) if norm == "cosine" else nn.Linear(fan_in, width)
        nn.init.normal_(linear.weight, std=gain / math.sqrt(fan_in))
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        hidden = [norm_of(norm, width, affine=affine), _FUNCTIONS[activation]()]
        layers += [weighted(linear, norm), *(hidden[::-1] if after else hidden)]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def vgg(channels: int, *, depth: int, width: int, norm: str = NONE, standardized: bool = False) -> nn.Sequential:
    """Plain 3 × 3 convolutions, halved in size and doubled in width once in the middle, and a mean over positions."""
    layers: list[nn.Module] = []
    for at in range(depth):
        out = width * (2 if at >= depth // 2 else 1)
        if at == depth // 2:
            layers.append(nn.MaxPool2d(2))
        convolution = nn.Conv2d(channels, out, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        name = "weight_standardization" if standardized else norm
        layers += [weighted(convolution, name), norm_of(norm, out, rank=4), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class Residual(nn.Module):
    """x + f(x), f being two layers (He et al. 2016)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        return x + self.inner(x)


def residual_mlp(inputs: int, *, depth: int, width: int, norm: str = NONE, activation: str = "relu") -> nn.Sequential:
    """The network of `mlp` in blocks of two layers with a connection around each."""
    gain = ACTIVATIONS[activation].gain

    def layer() -> list[nn.Module]:
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=gain / math.sqrt(width))
        return [norm_of(norm, width), _FUNCTIONS[activation](), weighted(linear, norm)]

    blocks = [Residual(nn.Sequential(*layer(), *layer())) for _ in range(depth // 2)]
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), *blocks, norm_of(norm, width), nn.Linear(width, 10))


class Recurrent(nn.Module):
    """A recurrent layer over (N, T, C) and a linear map from its last state."""

    def __init__(self, cell: str, inputs: int, hidden: int, *, norm: str | None = None, outputs: int = 10) -> None:
        super().__init__()
        self.layer = getattr(norms, cell)(inputs, hidden, batch_first=True, norm=norm)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, outputs)."""
        return self.out(self.layer(x)[0][:, -1])


@torch.no_grad()
def pre_activations(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """What each activation function of a plain network is given, in training mode, buffers untouched."""
    copied = copy.deepcopy(model).train()
    given = []
    for layer in copied:
        if isinstance(layer, tuple(_FUNCTIONS.values())[:-1]):
            given.append(x)
        x = layer(x)
    return given
