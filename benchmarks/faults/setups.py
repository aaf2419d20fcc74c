"""What is trained: five architectures on small images, and everything of a training that a fault can spoil."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from images import Images, cifar, digits
from torch import Tensor, nn

Builder = Callable[..., nn.Module]
Change = Callable[[nn.Module], Any]
Data = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Loop = Literal["right", "never cleared", "cleared before the step", "accumulated", "autocast", "averaged"]


@dataclass(frozen=True)
class Setup:
    """One training; a fault is a change of it, and what it was before is the cure."""

    name: str
    build: Builder
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    source: Callable[[], Images] = digits
    optimizer: str = "adam"
    tuning: dict[str, Any] = field(default_factory=dict)  # further arguments of the optimizer
    rate: float = 2e-3
    schedule: Callable[[int], float] | None = None  # step → multiple of the rate
    batch: int = 64
    steps: int = 200
    changes: tuple[Change, ...] = ()  # made to the model after it is built
    data: Data | None = None  # made of images of unit variance and their classes
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    score: Literal["accuracy", "error", "binary", "copy"] = "accuracy"
    order: Literal["shuffled", "sorted", "halves", "single"] = "shuffled"
    loop: Loop = "right"
    trains: Callable[[nn.Module], Any] = nn.Module.parameters
    clip: float | None = None

    def but(self, **other: Any) -> Setup:
        """The same training but for these fields; `options` and `changes` are added to."""
        for name in ("options", "tuning"):
            if name in other:
                other[name] = {**getattr(self, name), **other[name]}
        if "changes" in other:
            other["changes"] = (*self.changes, *other["changes"])
        return replace(self, **other)

    @property
    def kind(self) -> str:
        """The architecture, whatever it is trained on."""
        return self.name.split()[0]

    def model(self, seed: int) -> nn.Module:
        """A fresh model."""
        torch.manual_seed(seed)
        model = self.build(**self.options)
        for change in self.changes:
            change(model)
        return model

    def made(self, model: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimizer for it."""
        kinds = {
            "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "nadam": torch.optim.NAdam,
            "rmsprop": torch.optim.RMSprop, "adagrad": torch.optim.Adagrad, "radam": torch.optim.RAdam,
        }  # fmt: skip
        tuning = {"momentum": 0.9, **self.tuning} if self.optimizer == "sgd" else self.tuning
        return kinds[self.optimizer](list(self.trains(model)), self.rate, **tuning)

    def samples(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets, for training."""
        return self._made(self.source().train)

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets that training does not see."""
        return self._made(self.source().held_out)

    def _made(self, known: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = self.data(*known) if self.data else known
        return images.reshape(len(images), *self.shape), labels

    def batches(self, seed: int) -> Iterator[Tensor]:
        """Which samples each step takes."""
        generator = torch.Generator().manual_seed(seed)
        labels = self.source().train[1]
        number, order = len(labels), torch.argsort(labels, stable=True)
        for step in range(self.steps * (4 if self.loop == "accumulated" else 1)):
            if self.order == "shuffled":
                yield torch.randint(number, (self.batch,), generator=generator)
            elif self.order == "sorted":
                place = step * self.batch % (number - self.batch)
                yield order[place : place + self.batch]
            elif self.order == "single":  # each batch holds one class, the classes at random
                of = (labels == int(torch.randint(int(labels.max()) + 1, (), generator=generator))).nonzero()[:, 0]
                yield of[torch.randint(len(of), (self.batch,), generator=generator)]
            else:  # halves: one domain, then the other
                half = number // 2
                yield torch.randint(half, (self.batch,), generator=generator) + (step % 2) * half


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
    if kind == "rms":
        return [nn.RMSNorm(width)]
    return [nn.InstanceNorm2d(width, affine=True)]


def headed(inputs: int, width: int, outputs: int, norm: str | None, hidden: bool, before: Any = None) -> nn.Module:
    """The layers behind a body: a single one, or with a hidden one, which a norm needs."""
    if not (hidden or norm):
        return nn.Linear(inputs, outputs)
    hides = [nn.Linear(inputs, width), *([before()] if before else []), *norm_of(norm, width, flat=True), nn.ReLU()]
    return nn.Sequential(*hides, nn.Linear(width, outputs))


def mlp(depth=4, width=64, function=nn.ReLU, norm=None, inputs=64, outputs=10, end=None, before=None, after=None):
    """`depth` hidden layers; `end` ends, `before` goes before each norm and `after` after each activation."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Linear(inputs if number == 0 else width, width), *([before()] if before else [])]
        layers += [*norm_of(norm, width, flat=True), function(), *([after()] if after else [])]
    return nn.Sequential(*layers, nn.Linear(width, outputs), *([end()] if end else []))


def conv(depth=3, width=16, function=nn.ReLU, norm="batch", inputs=1, outputs=10, end=None, before=None, after=None):
    """Convolutions of 3 × 3, pooled once, averaged at the end."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Conv2d(inputs if number == 0 else width, width, 3, padding=1), *([before()] if before else [])]
        layers += [*norm_of(norm, width, flat=False), function(), *([after()] if after else [])]
        layers += [nn.MaxPool2d(2)] if number == 1 else []
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, outputs), *([end()] if end else [])
    )


class Residual(nn.Module):
    """Blocks of two convolutions around a shortcut."""

    def __init__(
        self, depth=3, width=16, function=nn.ReLU, norm="batch", inputs=1, outputs=10, end=None, before=None,
        hidden=False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *norm_of(norm, width, False), function(), nn.Conv2d(width, width, 3, padding=1),
                *([before()] if before else []),
                *norm_of(norm, width, False), function(), nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(depth)
        )  # fmt: skip
        self.last = nn.Sequential(*norm_of(norm, width, False), function(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head, self.end = headed(4 * width, 32, outputs, None, hidden), end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.end(self.head(self.last(x)))


class Recurrent(nn.Module):
    """Rows of the image as a sequence."""

    def __init__(
        self, width=48, kind="lstm", layers=1, inputs=8, outputs=10, end=None, norm=None, hidden=False, before=None
    ) -> None:
        super().__init__()
        kinds = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
        self.body = kinds[kind](inputs, width, layers, batch_first=True)
        self.head = headed(width, width, outputs, norm, hidden, before)
        self.end = end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(self.body(x)[0][:, -1]))


class Tokens(nn.Module):
    """Rows of the image as tokens of a transformer encoder."""

    def __init__(
        self, width=32, layers=2, first=True, inputs=8, outputs=10, end=None, function="gelu", norm=None, hidden=False,
        before=None, dropout=0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed, self.place = nn.Linear(inputs, width), nn.Parameter(torch.randn(8, width) * 0.1)
        layer = nn.TransformerEncoderLayer(
            width, 4, 64, dropout, activation=function, batch_first=True, norm_first=first
        )
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), headed(width, width, outputs, norm, hidden, before)
        self.end = end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(self.norm(self.body(self.embed(x) + self.place)).mean(1)))


SETUPS = {
    one.name: one
    for one in (
        Setup("mlp", mlp, (64,)),
        Setup("conv", conv, (1, 8, 8), rate=4e-3),
        Setup("residual", Residual, (1, 8, 8), {"depth": 2}, rate=4e-3, steps=150),
        Setup("lstm", Recurrent, (8, 8), rate=1e-2),
        Setup("transformer", Tokens, (8, 8), rate=3e-3, steps=180),
        Setup("conv cifar", conv, (3, 16, 16), {"inputs": 3, "outputs": 2}, cifar, rate=4e-3, steps=150, batch=48),
        Setup(
            "residual cifar", Residual, (3, 16, 16), {"inputs": 3, "outputs": 2, "depth": 2, "width": 12}, cifar,
            rate=4e-3, steps=120, batch=48,
        ),
    )
}  # fmt: skip
