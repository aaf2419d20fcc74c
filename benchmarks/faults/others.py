"""Other architectures again, those of the third held-out set, beside the first and the further ones."""

from __future__ import annotations

from itertools import pairwise

import further
import torch
import torch.nn.functional as F
from images import cifar
from setups import Setup, headed, norm_of
from torch import Tensor, nn


def funnel(widths=(96, 48, 24, 12), function=nn.LeakyReLU, norm=None, inputs=64, outputs=10, end=None, after=None):
    """Layers each half as wide as the one before."""
    layers: list[nn.Module] = []
    for before, width in pairwise((inputs, *widths)):
        layers += [nn.Linear(before, width), *norm_of(norm, width, True), function(), *([after()] if after else [])]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs), *([end()] if end else []))


def lenet(width=8, function=nn.Tanh, norm=None, inputs=1, outputs=10, end=None, side=8, after=None):
    """After LeNet-5: two convolutions, each averaged down, and two layers behind them."""
    wide = 2 * width * (side // 4) ** 2
    return nn.Sequential(
        nn.Conv2d(inputs, width, 5, padding=2), *norm_of(norm, width, False), function(), nn.AvgPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), *norm_of(norm, 2 * width, False), function(), nn.AvgPool2d(2),
        nn.Flatten(), *([after()] if after else []), nn.Linear(wide, 48), *norm_of(norm, 48, True), function(),
        nn.Linear(48, outputs), *([end()] if end else []),
    )  # fmt: skip


def strided(depth=4, width=16, function=nn.ReLU, norm="batch", inputs=1, outputs=10, end=None):
    """Nothing but convolutions, of stride 2 now and then; the answer is an average over the image."""
    layers: list[nn.Module] = []
    for number in range(depth):
        stride = 2 if number in (1, 3) else 1
        layers += [nn.Conv2d(width if number else inputs, width, 3, stride, 1), *norm_of(norm, width, False)]
        layers += [function()]
    ends = [nn.Conv2d(width, outputs, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *([end()] if end else [])]
    return nn.Sequential(*layers, *ends)


class Bottleneck(nn.Module):
    """Three convolutions, narrow in the middle, added to what came in before the last activation."""

    def __init__(self, before: int, width: int, stride: int, norm: str | None, function: type[nn.Module]) -> None:
        super().__init__()
        narrow = width // 2
        self.body = nn.Sequential(
            nn.Conv2d(before, narrow, 1, bias=False), *norm_of(norm, narrow, False), function(),
            nn.Conv2d(narrow, narrow, 3, stride, 1, bias=False), *norm_of(norm, narrow, False), function(),
            nn.Conv2d(narrow, width, 1, bias=False), *norm_of(norm, width, False),
        )  # fmt: skip
        short = [nn.Conv2d(before, width, 1, stride, bias=False), *norm_of(norm, width, False)]
        self.short = nn.Sequential(*short) if stride > 1 or before != width else nn.Identity()
        self.function = function()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.short(x) + self.body(x))


class Resnet(nn.Module):
    """Bottleneck blocks with projections, after the first ResNet: the activation stands behind the sum."""

    def __init__(self, width=16, depth=2, function=nn.ReLU, norm="batch", inputs=1, outputs=10, end=None) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, width, 3, padding=1, bias=False), *norm_of(norm, width, False), function()
        )
        blocks = [Bottleneck(width, 2 * width, 2, norm, function)]
        blocks += [Bottleneck(2 * width, 2 * width, 1, norm, function) for _ in range(depth - 1)]
        self.blocks = nn.ModuleList(blocks)
        self.head, self.end = nn.Linear(8 * width, outputs), end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.end(self.head(F.adaptive_avg_pool2d(x, 2).flatten(1)))


class Branches(nn.Module):
    """Kernels of three sizes and a pooled branch beside each other."""

    def __init__(self, before: int, width: int, norm: str | None, function: type[nn.Module]) -> None:
        super().__init__()

        def layer(kernel: int) -> list[nn.Module]:
            return [
                nn.Conv2d(before, width, kernel, padding=kernel // 2), *norm_of(norm, width, False), function()
            ]  # fmt: skip

        self.branches = nn.ModuleList(nn.Sequential(*layer(kernel)) for kernel in (1, 3, 5))
        self.branches.append(nn.Sequential(nn.MaxPool2d(3, 1, 1), *layer(1)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Inception(nn.Module):
    """Two modules of branches."""

    def __init__(self, width=6, function=nn.ReLU, norm="batch", inputs=1, outputs=10, end=None, before=None) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, 12, 3, padding=1), *([before()] if before else []), *norm_of(norm, 12, False), function()
        )
        self.first, self.second = Branches(12, width, norm, function), Branches(4 * width, width, norm, function)
        self.head, self.end = nn.Linear(16 * width, outputs), end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.max_pool2d(self.first(self.stem(x)), 2))
        return self.end(self.head(F.adaptive_avg_pool2d(x, 2).flatten(1)))


class Next(nn.Module):
    """A depthwise convolution, a norm and two layers over the channels, at a scale of its own beside a shortcut."""

    def __init__(self, width: int, function: type[nn.Module], scale: float) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.wide, self.function, self.narrow = nn.Linear(width, 2 * width), function(), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.narrow(self.function(self.wide(y)))).permute(0, 3, 1, 2)


class Convnext(nn.Module):
    """Such blocks over patches of two pixels a side."""

    def __init__(self, width=24, depth=3, function=nn.GELU, scale=0.5, patch=2, inputs=1, outputs=10, end=None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, width, patch, patch)
        self.blocks = nn.ModuleList(Next(width, function, scale) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)
        self.end = end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.end(self.head(self.norm(x.mean((2, 3)))))


class Bidirectional(nn.Module):
    """Rows read from above and from below, and the mean of what was read."""

    def __init__(self, width=24, kind="gru", layers=1, inputs=8, outputs=10, end=None, norm=None, hidden=False) -> None:
        super().__init__()
        kinds = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
        self.body = kinds[kind](inputs, width, layers, batch_first=True, bidirectional=True)
        self.head, self.end = headed(2 * width, 32, outputs, norm, hidden), end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(self.body(x)[0].mean(1)))


class Causal(nn.Module):
    """Two convolutions that see what came before, beside a shortcut."""

    def __init__(self, width: int, dilation: int, norm: str | None, function: type[nn.Module]) -> None:
        super().__init__()
        self.past = nn.ConstantPad1d((2 * dilation, 0), 0.0)
        self.first = nn.Conv1d(width, width, 3, dilation=dilation)
        self.norm = nn.Sequential(*norm_of(norm, width, True))
        self.function, self.second = function(), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.function(self.norm(self.first(self.past(x)))))


class Tcn(nn.Module):
    """Rows as a sequence, under convolutions ever further apart; the last step tells."""

    def __init__(self, width=24, function=nn.ReLU, norm=None, inputs=8, outputs=10, end=None) -> None:
        super().__init__()
        self.stem = nn.Conv1d(inputs, width, 1)
        self.blocks = nn.ModuleList(Causal(width, dilation, norm, function) for dilation in (1, 2, 4))
        self.head, self.end = nn.Linear(width, outputs), end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.end(self.head(x[:, :, -1].relu()))


class Attention(nn.Module):
    """Attention written by hand."""

    def __init__(self, width: int, heads: int, scale: float | None, axis: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.axis, self.scale = heads, axis, scale or (width // heads) ** -0.5
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.softmax, self.dropout, self.mix = nn.Softmax(axis), nn.Dropout(dropout), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            one(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for one in (self.query, self.key, self.value)
        )
        seen = self.dropout(self.softmax(query @ key.transpose(2, 3) * self.scale))
        return self.mix((seen @ value).transpose(1, 2).flatten(2))


class Reading(nn.Module):
    """Attention and a small network, each with its norm behind the sum."""

    def __init__(self, width: int, heads: int, scale: float | None, axis: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, scale, axis, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x + self.attention(x))
        return self.second(x + self.mlp(x))


class Scribe(nn.Module):
    """A transformer written by hand, norms behind, over sixteen pieces of four pixels, with waves for places."""

    places: Tensor

    def __init__(
        self, width=32, depth=2, heads=2, scale=None, axis=-1, dropout=0.0, placed=True, inputs=4, outputs=10, end=None
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        waves = torch.arange(16.0)[:, None] * 100.0 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("places", torch.cat([waves.sin(), waves.cos()], 1) * placed)
        self.blocks = nn.ModuleList(Reading(width, heads, scale, axis, dropout) for _ in range(depth))
        self.head, self.end = nn.Linear(width, outputs), end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.places
        for block in self.blocks:
            x = block(x)
        return self.end(self.head(x.mean(1)))


class Segmenter(nn.Module):
    """A U-Net of two levels, which tells a class for every pixel."""

    def __init__(self, width=8, function=nn.ReLU, norm="batch", inputs=1, outputs=2, end=None) -> None:
        super().__init__()

        def layer(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), *norm_of(norm, after, False), function())

        self.stem, self.down = layer(inputs, width), layer(width, 2 * width)
        self.bottom = layer(2 * width, 4 * width)
        self.rise, self.up = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), layer(4 * width, 2 * width)
        self.lift, self.top = nn.ConvTranspose2d(2 * width, width, 2, 2), layer(2 * width, width)
        self.head, self.end = nn.Conv2d(width, outputs, 1), end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        wide = self.stem(x)
        middle = self.down(F.max_pool2d(wide, 2))
        x = self.rise(self.bottom(F.max_pool2d(middle, 2)))
        x = self.lift(self.up(torch.cat([middle, x], 1)))
        return self.end(self.head(self.top(torch.cat([wide, x], 1))))


def coder(width=12, narrow=24, function=nn.ELU, norm=None, inputs=1, side=8, end=None):
    """An autoencoder of convolutions, narrow in the middle."""
    wide, low = 2 * width * (side // 4) ** 2, side // 4
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, 2, 1), *norm_of(norm, width, False), function(),
        nn.Conv2d(width, 2 * width, 3, 2, 1), *norm_of(norm, 2 * width, False), function(), nn.Flatten(),
        nn.Linear(wide, narrow), nn.Linear(narrow, wide), function(), nn.Unflatten(1, (2 * width, low, low)),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1), *norm_of(norm, width, False), function(),
        nn.ConvTranspose2d(width, inputs, 4, 2, 1), *([end()] if end else []),
    )  # fmt: skip


class Resmlp(nn.Module):
    """Layers of a flat image, each pair beside a shortcut."""

    def __init__(self, width=48, depth=3, function=nn.SiLU, norm="layer", inputs=64, outputs=10, end=None) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *norm_of(norm, width, True), nn.Linear(width, width), function(), nn.Linear(width, width)
            )
            for _ in range(depth)
        )  # fmt: skip
        self.head = nn.Sequential(function(), nn.Linear(width, outputs), *([end()] if end else []))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Points(nn.Module):
    """Pixels as a set of points, each with its place as waves; the largest of each feature tells."""

    places: Tensor

    def __init__(self, width=64, function=nn.ReLU, norm=None, outputs=10, end=None) -> None:
        super().__init__()
        place = torch.arange(8.0)
        waves = torch.cat([torch.sin(place[:, None] * torch.tensor([0.4, 0.8, 1.6])),
                           torch.cos(place[:, None] * torch.tensor([0.4, 0.8, 1.6]))], 1)  # fmt: skip
        both = torch.cat([waves[:, None].expand(8, 8, 6), waves[None].expand(8, 8, 6)], 2)
        self.register_buffer("places", both.reshape(64, 12))
        self.each = nn.Sequential(nn.Linear(13, width), function(), nn.Linear(width, width), function())
        self.head = headed(width, 32, outputs, norm, True)
        self.end = end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        points = torch.cat([x[:, :, None], self.places.expand(len(x), -1, -1)], 2)
        return self.end(self.head(self.each(points).amax(1)))


class Words(nn.Module):
    """Grey levels as words, under kernels of three lengths, after the convolutional nets for sentences."""

    def __init__(self, width=12, features=8, norm=None, outputs=10, end=None) -> None:
        super().__init__()
        self.embed = nn.Embedding(17, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, features, length) for length in (3, 5, 9))
        self.pool, self.head = nn.AdaptiveMaxPool1d(8), headed(24 * features, 32, outputs, norm, True)
        self.end = end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).transpose(1, 2)
        found = [self.pool(conv(x).relu()).flatten(1) for conv in self.convs]
        return self.end(self.head(torch.cat(found, 1)))


class Towers(nn.Module):
    """The two halves of the image, each in a small network of its own."""

    def __init__(self, width=40, norm=None, functions=(nn.Tanh, nn.ReLU), inputs=32, outputs=10, end=None) -> None:
        super().__init__()
        self.upper, self.lower = (
            nn.Sequential(nn.Linear(inputs, width), *norm_of(norm, width, True), one(), nn.Linear(width, width), one())
            for one in functions
        )
        self.head, self.end = headed(2 * width, width, outputs, norm, True), end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        upper, lower = x.chunk(2, 1)
        return self.end(self.head(torch.cat([self.upper(upper), self.lower(lower)], 1)))


class Experts(nn.Module):
    """Four small networks, and a fifth that says how much each is to be trusted."""

    def __init__(self, width=24, number=4, function=nn.ReLU, inputs=64, outputs=10, end=None) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, width), function(), nn.Linear(width, width), function())
            for _ in range(number)
        )
        self.gate = nn.Sequential(nn.Linear(inputs, number), nn.Softmax(1))
        self.head, self.end = nn.Linear(width, outputs), end() if end else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        trusted = self.gate(x)
        told = torch.stack([expert(x) for expert in self.experts], 1)
        return self.end(self.head((trusted[:, :, None] * told).sum(1)))


# what they are asked -------------------------------------------------------------------------------------------------

Data = tuple[Tensor, Tensor]


def bright(images: Tensor, labels: Tensor) -> Data:
    """Images under noise, and which pixels are bright without it."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(9))
    clean = images.reshape(len(images), 8, 8) if images.ndim == 2 else images.mean(1)
    return images + 0.6 * noise, (clean > 0.3).long()


def itself(images: Tensor, labels: Tensor) -> Data:
    """The image."""
    return images, images.reshape(len(images), 1, 8, 8) if images.ndim == 2 else images


def worded(images: Tensor, labels: Tensor) -> Data:
    """Seventeen grey levels as words."""
    return ((images - images.min()) / (images.max() - images.min()) * 16).round().long(), labels


_COLOURS = {"inputs": 3, "outputs": 2}
SETUPS = further.SETUPS | {
    one.name: one
    for one in (
        Setup("funnel", funnel, (64,)),
        Setup("lenet", lenet, (1, 8, 8), rate=3e-3),
        Setup("strided", strided, (1, 8, 8), rate=5e-3),
        Setup("resnet", Resnet, (1, 8, 8), rate=5e-3, steps=150),
        Setup("inception", Inception, (1, 8, 8), rate=5e-3, steps=120),
        Setup("convnext", Convnext, (1, 8, 8), rate=5e-3, steps=250),
        Setup("bigru", Bidirectional, (8, 8), rate=1e-2),
        Setup("tcn", Tcn, (8, 8), rate=5e-3, steps=250),
        Setup("scribe", Scribe, (16, 4), rate=3e-3, steps=250),
        Setup("segmenter", Segmenter, (1, 8, 8), rate=5e-3, steps=120, batch=32, data=bright),
        Setup("coder", coder, (1, 8, 8), rate=5e-3, steps=300, data=itself, loss=F.mse_loss, score="copy"),
        Setup("resmlp", Resmlp, (64,), rate=2e-3),
        Setup("points", Points, (64,), rate=4e-3, steps=300, batch=48),
        Setup("words", Words, (64,), rate=5e-3, data=worded),
        Setup("towers", Towers, (64,), rate=3e-3),
        Setup("experts", Experts, (64,), rate=4e-3),
        Setup("strided cifar", strided, (3, 16, 16), _COLOURS, cifar, rate=4e-3, steps=150, batch=48),
        Setup("resnet cifar", Resnet, (3, 16, 16), _COLOURS, cifar, rate=4e-3, steps=120, batch=48),
        Setup("inception cifar", Inception, (3, 16, 16), _COLOURS, cifar, rate=4e-3, steps=100, batch=32),
        Setup("convnext cifar", Convnext, (3, 16, 16), {**_COLOURS, "patch": 4}, cifar, rate=4e-3, batch=48),
        Setup(
            "coder cifar", coder, (3, 16, 16), {"inputs": 3, "side": 16, "narrow": 48}, cifar, rate=4e-3, steps=200,
            batch=48, data=itself, loss=F.mse_loss, score="copy",
        ),
    )
}  # fmt: skip
