"""The networks of the training claims, each with its norm by name. Arms of one seed draw the same weights.

A name is one of the catalog, "BatchChannelNorm", a norm of weights, or "none"; "+ WS" behind it standardizes weights.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from normscope import nn as norms
from normscope.terms.activations import ACTIVATIONS
from normscope.terms.catalog import CATALOG
from normscope.terms.errors import SpecError

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
    """A norm for (N, C) or (N, C, H, W) by its name; nothing for "none" and for norms of weights."""
    name = name.partition(" + ")[0]
    if name in (NONE, "cosine", *_WEIGHTS):
        return nn.Identity()
    if name == "BatchChannelNorm":
        return norms.BatchChannelNorm(channels, _GROUPS)
    spec = CATALOG["LayerNorm2d" if name == "LayerNorm" and rank > 2 else name]
    spec = spec.but(affine=affine and spec.affine, bias=affine and spec.bias)
    if spec.groups > 1:
        spec = spec.but(groups=math.gcd(channels // 2, _GROUPS))  # a group of one channel would be InstanceNorm
    return norms.build(spec, channels, rank=rank)


def weighted(layer: nn.Module, name: str) -> nn.Module:
    """The layer with its weights reparametrized, where the norm is one of weights."""
    name = "weight_standardization" if name.endswith(" + WS") else name
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


def convolution(channels: int, out: int, norm: str, *, stride: int = 1) -> list[nn.Module]:
    """A 3 × 3 convolution with He's weights, and its norm."""
    layer = nn.Conv2d(channels, out, 3, stride, padding=1)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return [weighted(layer, norm), norm_of(norm, out, rank=4)]


def vgg(channels: int, *, depth: int, width: int, norm: str = NONE, outputs: int = 10) -> nn.Sequential:
    """Plain 3 × 3 convolutions, halved in size and doubled in width once in the middle, and a mean over positions."""
    layers: list[nn.Module] = []
    for at in range(depth):
        out = width * (2 if at >= depth // 2 else 1)
        if at == depth // 2:
            layers.append(nn.MaxPool2d(2))
        layers += [*convolution(channels, out, norm), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


def vgg16(channels: int, side: int, *, width: int = 64, norm: str = NONE, outputs: int = 10) -> nn.Sequential:
    """The thirteen convolutions of VGG-16 (Simonyan & Zisserman 2015, table 1, column D) and a linear layer.

    Widths are `width` × 1, 2, 4, 8, 8. The pooling behind a stage is left out where an image of `side` pixels has none
    left to pool.
    """
    layers: list[nn.Module] = []
    for times, convolutions in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
        for _ in range(convolutions):
            layers += [*convolution(channels, times * width, norm), nn.ReLU()]
            channels = times * width
        if side >= 2:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


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


class _Block(nn.Module):
    """Two convolutions and a connection around them; a step in size takes every other pixel, adding empty channels."""

    def __init__(self, channels: int, out: int, norm: str) -> None:
        super().__init__()
        self.stride, self.more = out // channels, out - channels
        first, second = convolution(channels, out, norm, stride=self.stride), convolution(out, out, norm)
        self.inner = nn.Sequential(*first, nn.ReLU(), *second)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The sum, rectified."""
        around = nn.functional.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return self.relu(around + self.inner(x))


def resnet(channels: int, *, depth: int, width: int = 16, norm: str = NONE, outputs: int = 10) -> nn.Sequential:
    """The residual network of CIFAR (He et al. 2016, section 4.2): 20, 32, 44, 56 or 110 layers, 6n + 2 for any n.

    Three stages of n blocks with `width` × 1, 2, 4 channels, connections without parameters (their option A).

    Raises:
        SpecError: no whole number of blocks makes `depth` layers.
    """
    blocks, left = divmod(depth - 2, 6)
    if left or blocks < 1:
        raise SpecError(
            f"A residual network of {depth} layers was asked for.",
            found={"depth": depth},
            because="three stages of n blocks of two layers, with the first and the last one, are 6n + 2 layers",
            do="choose 20, 32, 44, 56, 110 or another 6n + 2",
        )
    widths = [width * 2**stage for stage in range(3) for _ in range(blocks)]
    inner = [_Block(before, out, norm) for before, out in zip([width, *widths], widths)]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], outputs))
    return nn.Sequential(*convolution(channels, width, norm), nn.ReLU(), *inner, *head)


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
