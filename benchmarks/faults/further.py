"""Further architectures, those of the second held-out set, beside the first ones."""

from __future__ import annotations

import setups
import torch
import torch.nn.functional as F
from images import cifar
from setups import Setup, norm_of
from torch import Tensor, nn


class Tagger(nn.Module):
    """A tag for every row of the image, by what was read so far."""

    def __init__(self, width=40, kind="gru", layers=1, inputs=8, outputs=4, end=None) -> None:
        super().__init__()
        kinds = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
        self.body = kinds[kind](inputs, width, layers, batch_first=True)
        self.head, self.end = nn.Linear(width, outputs), end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(self.body(x)[0]).transpose(1, 2))


class Seeing(nn.Module):
    """Attention and a small network, each behind its norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, dropout: float, function: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), function(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.second(x))


class Mixing(nn.Module):
    """A small network over the patches, then one over their features."""

    def __init__(self, width: int, patches: int, function: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(patches, 2 * patches), function(), nn.Linear(2 * patches, patches))
        self.along = nn.Sequential(nn.Linear(width, 2 * width), function(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.first(x).transpose(1, 2)).transpose(1, 2)
        return x + self.along(self.second(x))


class Vision(nn.Module):
    """A transformer over 16 patches of the image, read off at a token of its own."""

    def __init__(
        self,
        width=32,
        depth=2,
        heads=4,
        patch=2,
        inputs=1,
        outputs=10,
        end=None,
        dropout=0.0,
        function=nn.GELU,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.place = nn.Parameter(torch.randn(17, width) * 0.1)
        self.blocks = nn.ModuleList(Seeing(width, heads, dropout, function) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)
        self.end = end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        for block in self.blocks:
            x = block(x)
        return self.end(self.head(self.norm(x)[:, 0]))


class Mixer(nn.Module):
    """An MLP-mixer over 16 patches."""

    def __init__(
        self,
        width=32,
        depth=2,
        patch=2,
        inputs=1,
        outputs=10,
        end=None,
        function=nn.GELU,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, width, patch, patch)
        self.blocks = nn.ModuleList(Mixing(width, 16, function) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)
        self.end = end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.end(self.head(self.norm(x).mean(1)))


class Hourglass(nn.Module):
    """An encoder and a decoder with a shortcut between them, after the U-Net."""

    def __init__(self, width=12, function=nn.ReLU, norm="batch", inputs=1, end=None) -> None:
        super().__init__()

        def layer(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1),
                *norm_of(norm, after, False),
                function(),
            )

        self.stem, self.down = layer(inputs, width), layer(width, 2 * width)
        self.bottom, self.up = layer(2 * width, 2 * width), layer(3 * width, width)
        self.head, self.end = (
            nn.Conv2d(width, inputs, 3, padding=1),
            end() if end else nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        wide = self.stem(x)
        deep = F.interpolate(self.bottom(self.down(F.max_pool2d(wide, 2))), scale_factor=2.0)
        return self.end(self.head(self.up(torch.cat([wide, deep], 1))))


def depthwise(depth=2, width=24, function=nn.SiLU, norm="group", inputs=1, outputs=10, end=None):
    """Depthwise and pointwise convolutions, each with a norm."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, width, 3, padding=1),
        *norm_of(norm, width, False),
        function(),
    ]
    for number in range(depth):
        layers += [
            nn.Conv2d(width, width, 3, 1 + (number == 0), 1, groups=width),
            *norm_of(norm, width, False),
        ]
        layers += [
            function(),
            nn.Conv2d(width, width, 1),
            *norm_of(norm, width, False),
            function(),
        ]
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, outputs),
        *([end()] if end else []),
    )


def series(depth=3, width=16, function=nn.ReLU, norm="batch", inputs=1, outputs=10, end=None):
    """Convolutions over the pixels in a row."""
    layers: list[nn.Module] = []
    for number in range(depth):
        layers += [nn.Conv1d(width if number else inputs, width, 5, 2 if number < 2 else 1, 2)]
        layers += [*norm_of(norm, width, True), function()]
    return nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool1d(8),
        nn.Flatten(),
        nn.Linear(8 * width, outputs),
        *([end()] if end else []),
    )


def ink(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """For each row, in which quarter of all images the ink up to there lies."""
    sums = images.reshape(len(images), 8, -1).mean(2).cumsum(1)
    bounds = torch.quantile(sums, torch.tensor([0.25, 0.5, 0.75]), dim=0)
    return images, (sums[None] > bounds[:, None]).sum(0)


def noisy(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images under noise, and the images."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    size = (len(images), 1, 8, 8) if images.ndim == 2 else images.shape
    return images + 0.5 * noise, images.reshape(size)


_COLOURS = {"inputs": 3, "outputs": 2}
SETUPS = setups.SETUPS | {
    one.name: one
    for one in (
        Setup("tagger", Tagger, (8, 8), rate=1e-2, data=ink),
        Setup("vision", Vision, (1, 8, 8), rate=3e-3),
        Setup("mixer", Mixer, (1, 8, 8), rate=3e-3, steps=180),
        Setup("hourglass", Hourglass, (1, 8, 8), rate=5e-3, steps=150, data=noisy, loss=F.mse_loss, score="error"),
        Setup("depthwise", depthwise, (1, 8, 8), rate=5e-3),
        Setup("series", series, (1, 64), rate=4e-3),
        Setup(
            "vision cifar", Vision, (3, 16, 16), {**_COLOURS, "patch": 4}, cifar, rate=2e-3, steps=150, batch=48
        ),
        Setup("depthwise cifar", depthwise, (3, 16, 16), _COLOURS, cifar, rate=4e-3, steps=120, batch=48),
        Setup(
            "hourglass cifar", Hourglass, (3, 16, 16), {"inputs": 3}, cifar, rate=5e-3, steps=100, batch=32,
            data=noisy, loss=F.mse_loss, score="error",
        ),
    )
}  # fmt: skip
