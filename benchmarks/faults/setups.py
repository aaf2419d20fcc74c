"""What is trained: five architectures, and everything of a training that a fault can spoil, on handwritten digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

Builder = Callable[..., nn.Module]
Change = Callable[[nn.Module], Any]
Data = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Setup:
    """One training; a fault is a change of it, and what it was before is the cure."""

    name: str
    build: Builder
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "adam"
    rate: float = 2e-3
    batch: int = 64
    steps: int = 220
    changes: tuple[Change, ...] = ()  # made to the model after it is built
    data: Data | None = None  # made of images of unit variance and their classes
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    score: str = "accuracy"
    order: str = "shuffled"
    each_step: Change | None = None
    clears: bool = True  # whether gradients are set to zero
    trains: Callable[[nn.Module], Any] = nn.Module.parameters
    clip: float | None = None

    def but(self, **other: Any) -> Setup:
        """The same training but for these fields; `options` and `changes` are added to."""
        if "options" in other:
            other["options"] = {**self.options, **other["options"]}
        if "changes" in other:
            other["changes"] = (*self.changes, *other["changes"])
        return replace(self, **other)

    def model(self, seed: int) -> nn.Module:
        """A fresh model."""
        torch.manual_seed(seed)
        model = self.build(**self.options)
        for change in self.changes:
            change(model)
        return model

    def made(self, model: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimizer for it."""
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
        parameters = list(self.trains(model))
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, self.rate, momentum=0.9)
        return kinds[self.optimizer](parameters, self.rate)

    def samples(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets, for training."""
        images, labels = digits()[0]
        images, labels = self.data(images, labels) if self.data else (images, labels)
        return images.reshape(len(images), *self.shape), labels

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets that training does not see."""
        images, labels = digits()[1]
        images, labels = self.data(images, labels) if self.data else (images, labels)
        return images.reshape(len(images), *self.shape), labels

    def batches(self, labels: Tensor, seed: int) -> Iterator[Tensor]:
        """Which samples each step takes."""
        generator = torch.Generator().manual_seed(seed)
        number = len(labels)
        for step in range(self.steps):
            if self.order == "shuffled":
                yield torch.randint(number, (self.batch,), generator=generator)
            elif self.order == "sorted":
                place = step * self.batch % (number - self.batch)
                yield torch.argsort(digits()[0][1], stable=True)[place : place + self.batch]
            else:  # halves: one domain, then the other
                half = number // 2
                yield torch.randint(half, (self.batch,), generator=generator) + (step % 2) * half


@cache
def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(inputs, labels) of 1,397 images for training and 400 held out; (n, 64), standardized as a whole."""
    data, target = load_digits(return_X_y=True)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(7))
    images = torch.tensor(data, dtype=torch.float32)[order]
    labels = torch.tensor(target)[order]
    images = (images - images.mean()) / images.std()
    return (images[:1397], labels[:1397]), (images[1397:], labels[1397:])


def norm_of(kind: str | None, width: int, flat: bool) -> list[nn.Module]:
    """The norm of that name, in a list; an empty one for None."""
    if kind is None:
        return []
    if kind == "batch":
        return [nn.BatchNorm1d(width) if flat else nn.BatchNorm2d(width)]
    if kind == "group":
        return [nn.GroupNorm(4, width)]
    if kind == "layer":
        return [nn.LayerNorm(width) if flat else nn.GroupNorm(1, width)]
    return [nn.InstanceNorm2d(width, affine=True)]


def mlp(depth=4, width=64, function=nn.ReLU, norm=None, outputs=10, end=None, before=None) -> nn.Module:
    """`depth` hidden layers; `end` and `before` make a last activation and a layer before each norm."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Linear(64 if number == 0 else width, width), *([before()] if before else [])]
        layers += [*norm_of(norm, width, flat=True), function()]
    return nn.Sequential(*layers, nn.Linear(width, outputs), *([end()] if end else []))


def conv(depth=3, width=16, function=nn.ReLU, norm="batch", outputs=10, end=None, before=None) -> nn.Module:
    """Convolutions of 3 × 3, pooled once, averaged at the end."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Conv2d(1 if number == 0 else width, width, 3, padding=1), *([before()] if before else [])]
        layers += [*norm_of(norm, width, flat=False), function(), *([nn.MaxPool2d(2)] if number == 1 else [])]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, outputs), *([end()] if end else [])
    )


class Residual(nn.Module):
    """Blocks of two convolutions around a shortcut."""

    def __init__(self, depth=3, width=16, function=nn.ReLU, norm="batch", outputs=10, end=None, before=None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *norm_of(norm, width, False), function(), nn.Conv2d(width, width, 3, padding=1),
                *([before()] if before else []),
                *norm_of(norm, width, False), function(), nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(depth)
        )  # fmt: skip
        self.last = nn.Sequential(*norm_of(norm, width, False), function(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head, self.end = nn.Linear(4 * width, outputs), end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.end(self.head(self.last(x)))


class Recurrent(nn.Module):
    """Rows of the image as a sequence."""

    def __init__(self, width=48, kind="lstm", layers=1, outputs=10, end=None) -> None:
        super().__init__()
        kinds = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
        self.body = kinds[kind](8, width, layers, batch_first=True)
        self.head, self.end = nn.Linear(width, outputs), end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(self.body(x)[0][:, -1]))


class Tokens(nn.Module):
    """Rows of the image as tokens of a transformer encoder."""

    def __init__(self, width=32, layers=2, first=True, outputs=10, end=None, function="gelu") -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(torch.randn(8, width) * 0.1)
        layer = nn.TransformerEncoderLayer(width, 4, 64, 0.0, activation=function, batch_first=True, norm_first=first)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)
        self.end = end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(self.norm(self.body(self.embed(x) + self.place)).mean(1)))


SETUPS = {
    one.name: one
    for one in (
        Setup("mlp", mlp, (64,)),
        Setup("conv", conv, (1, 8, 8), rate=4e-3),
        Setup("residual", Residual, (1, 8, 8), rate=4e-3, steps=160),
        Setup("lstm", Recurrent, (8, 8), rate=1e-2),
        Setup("transformer", Tokens, (8, 8), rate=3e-3),
    )
}
