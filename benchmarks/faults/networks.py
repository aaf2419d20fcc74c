"""Further networks of sound runs: what the five architectures do not hold."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from changes import weights
from setups import SETUPS
from torch import Tensor, nn
from training import train


class Coder(nn.Module):
    """An autoencoder of two layers a side."""

    def __init__(self, widths: tuple[int, ...] = (64, 48, 24, 48, 64)) -> None:
        super().__init__()
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.Tanh())][:-1]
        self.coder = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.coder(x)


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder transposed."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.encode, self.back = nn.Linear(64, width), nn.Parameter(torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.encode(x).tanh(), self.encode.weight.T, self.back)


class Squeezed(nn.Module):
    """Convolutions with gates over channels (squeeze and excitation)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.gate = nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width), nn.Sigmoid())
        self.conv, self.head = nn.Conv2d(width, width, 3, padding=1), nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x * self.gate(x.mean((2, 3)))[:, :, None, None]
        return self.head(F.adaptive_avg_pool2d(self.conv(x).relu(), 2).flatten(1))


class Dense(nn.Module):
    """Each layer reads all that came before it."""

    def __init__(self, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64 + number * width, width) for number in range(depth))
        self.head = nn.Linear(64 + depth * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x).relu()], 1)
        return self.head(x)


class Siamese(nn.Module):
    """The same body called for both halves of the image."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.body(x[:, :32]), self.body(x[:, 32:])], 1))


def of_tokens(width: int = 8) -> nn.Module:
    """Grey levels as words."""
    return nn.Sequential(nn.Embedding(17, width), nn.Flatten(), nn.Linear(64 * width, 48), nn.ReLU(), nn.Linear(48, 10))


def separable(width: int = 24) -> nn.Module:
    """Depthwise and pointwise convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()]
    for _ in range(2):
        layers += [nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU6()]
        layers += [nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))


def normed_first(**options) -> nn.Module:
    """Raw features, which a batch normalization standardizes."""
    return nn.Sequential(nn.BatchNorm1d(64), *SETUPS["mlp"].build(**options))


def reparametrized(kind=nn.utils.parametrizations.weight_norm, **options) -> nn.Module:
    """An MLP with a parametrization of every matrix."""
    model = SETUPS["mlp"].build(**options)
    for layer in model:
        if isinstance(layer, nn.Linear):
            kind(layer)
    return model


def branches_at_zero(model: nn.Module) -> None:
    """The last convolution of each branch starts at zero."""
    for block in model.blocks:  # type: ignore[union-attr]
        nn.init.zeros_(block[-1].weight)


def lecun(model: nn.Module) -> None:
    """Weights of variance 1 over the fan-in, biases zero."""
    for one in model.parameters():
        nn.init.zeros_(one) if one.ndim < 2 else nn.init.kaiming_normal_(one, nonlinearity="linear")


def xavier(model: nn.Module) -> None:
    """Weights at the gain of tanh."""
    for one in weights(model):
        nn.init.xavier_normal_(one, 5 / 3)


def pretrained(name: str):
    """Trained on the same images before, with a new last layer."""

    def change(model: nn.Module) -> None:
        setup = SETUPS[name]
        train(setup, 5, model, setup.made(model))
        list(model.modules())[-1].reset_parameters()  # type: ignore[operator]

    return change
