"""Sound trainings of the second held-out set, on the further architectures and in further ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from further import SETUPS
from planted.second.inputs import fed, to_amount
from planted.second.norms import Stepwise, Twins
from setups import Setup
from torch import Tensor, nn

FLAT, IMAGES, SHORT, SEQUENCE, WORDS = (SETUPS[name] for name in ("mlp", "conv", "residual", "lstm", "transformer"))
TAGS, PATCHES, MIXED, GLASS, DEPTH, ROW = (
    SETUPS[name] for name in ("tagger", "vision", "mixer", "hourglass", "depthwise", "series")
)
COLOURS = SETUPS["hourglass cifar"]


def further() -> list[Setup]:
    """All of them."""
    return [setup.but(name=name) for name, setup in (_nets() | _ways()).items()]


def _nets() -> dict[str, Setup]:
    """Widths, depths, functions, norms, optimizers and batches of the further architectures."""
    return {
        "tagger": TAGS,
        "tagger, lstm": TAGS.but(options={"kind": "lstm"}),
        "tagger, plain recurrence": TAGS.but(options={"kind": "rnn"}, rate=3e-3, steps=300),
        "tagger, 12 wide": TAGS.but(options={"width": 12}, steps=400),
        "tagger, SGD": TAGS.but(optimizer="sgd", rate=0.1, steps=350),
        "vision": PATCHES,
        "vision, one head": PATCHES.but(options={"heads": 1}),
        "vision, eight heads, relu": PATCHES.but(options={"heads": 8, "function": nn.ReLU}),
        "vision, AdamW": PATCHES.but(optimizer="adamw", rate=2e-3, tuning={"weight_decay": 0.05}, steps=220),
        "mixer": MIXED,
        "mixer, tanh": MIXED.but(options={"function": nn.Tanh}),
        "mixer, RMSprop": MIXED.but(optimizer="rmsprop", rate=1e-3),
        "hourglass": GLASS,
        "hourglass, group norm": GLASS.but(options={"norm": "group"}),
        "hourglass, instance norm": GLASS.but(options={"norm": "instance"}),
        "hourglass, no norm": GLASS.but(options={"norm": None}, rate=3e-3),
        "hourglass, SGD": GLASS.but(optimizer="sgd", rate=0.1),
        "hourglass, absolute error": GLASS.but(loss=F.l1_loss),
        "hourglass cifar, no norm": COLOURS.but(options={"norm": None}, rate=3e-3),
        "hourglass cifar, 6 wide, tanh": COLOURS.but(options={"norm": None, "width": 6, "function": nn.Tanh}),
        "depthwise": DEPTH,
        "depthwise, batch norm": DEPTH.but(options={"norm": "batch"}),
        "depthwise, no norm": DEPTH.but(options={"norm": None}, rate=3e-3, steps=300),
        "depthwise, hardswish, SGD": DEPTH.but(options={"function": nn.Hardswish}, optimizer="sgd", rate=0.1),
        "depthwise, layer norm, batch of 8": DEPTH.but(options={"norm": "layer"}, batch=8, rate=2e-3, steps=300),
        "series": ROW,
        "series, 6 deep": ROW.but(options={"depth": 6}),
        "series, no norm": ROW.but(options={"norm": None}, rate=3e-3),
        "series, group norm, GELU": ROW.but(options={"norm": "group", "function": nn.GELU}),
        "series, 6 wide": ROW.but(options={"width": 6}, steps=350),
        "series, SGD, batch of 256": ROW.but(optimizer="sgd", rate=0.2, batch=256),
        "series, ELU, NAdam": ROW.but(options={"function": nn.ELU}, optimizer="nadam", rate=2e-3),
    }


def _ways() -> dict[str, Setup]:
    """What looks odd and trains well."""
    return {
        "two halves, each with its own batch norm": FLAT.but(build=Twins, options={"shared": False}),
        "a recurrence with layer norm inside": SEQUENCE.but(build=Stepwise, options={}, rate=3e-3),
        "a recurrence with RMS norm inside": SEQUENCE.but(build=Stepwise, options={"norm": nn.RMSNorm}, rate=3e-3),
        "one hidden layer of 6 units": FLAT.but(options={"depth": 1, "width": 6}, rate=1e-2, steps=500),
        "bottleneck in the middle": FLAT.but(changes=(_bottleneck,), steps=300),
        "layers frozen at random, the rest learns": FLAT.but(options={"width": 256, "depth": 2}, trains=_but_first),
        "branches weighed by a gate from zero": SHORT.but(changes=(_gated,)),
        "weights from an orthogonal start": FLAT.but(changes=(_orthogonal,), optimizer="sgd", rate=0.05),
        "sparse start": FLAT.but(changes=(_sparse,), rate=4e-3, steps=300),
        "β1 of 0": FLAT.but(tuning={"betas": (0.0, 0.99)}, steps=250),
        "AMSGrad": IMAGES.but(tuning={"amsgrad": True}),
        "ε of 0.01 in Adam": FLAT.but(tuning={"eps": 1e-2}, rate=1e-2),
        "SGD of 0.5 without momentum, batch norm": IMAGES.but(
            optimizer="sgd", rate=0.5, tuning={"momentum": 0.0}, batch=128, steps=150
        ),
        "two rates, ten times apart": FLAT.but(trains=_two_rates, steps=250),
        "rate in a triangle": IMAGES.but(schedule=_triangle),
        "linear decay to nothing": SHORT.but(schedule=lambda step: max(0.0, 1 - step / 150)),
        "warm restarts": FLAT.but(schedule=lambda step: 0.05 + 0.95 * (1 - step % 80 / 80), steps=320),
        "pixels scaled to [−1, 1]": IMAGES.but(data=_symmetric),
        "dark and bright images alike, instance norm": fed(_contrasts)(IMAGES.but(options={"norm": "instance"})),
        "slight noise in training": IMAGES.but(changes=(_noised,)),
        "sparse input": fed(_sparsened)(FLAT.but(options={"width": 128})),
        "two labels in a hundred wrong": IMAGES.but(data=_some_wrong),
        "regression, vision": to_amount(PATCHES),
        "regression, series": to_amount(ROW),
        "regression, Huber": to_amount(FLAT).but(loss=F.smooth_l1_loss),
        "positive targets behind softplus": to_amount(FLAT).but(data=_positive, options={"end": nn.Softplus}),
        "margin loss": FLAT.but(loss=F.multi_margin_loss, rate=4e-3),
        "loss ten times over, Adam": FLAT.but(loss=lambda output, target: 10 * F.cross_entropy(output, target)),
        "classes of unlike weight": IMAGES.but(loss=_weighed),
        "squashed logits": FLAT.but(options={"end": _soft_cap}),
        "bfloat16, series": ROW.but(loop="autocast", steps=100),
        "averaged weights, mixer": MIXED.but(loop="averaged", steps=250),
        "four batches a step, tagger": TAGS.but(loop="accumulated", batch=16),
        "RMS norm in 8 layers": FLAT.but(options={"norm": "rms", "depth": 8}),
        "batch norm without affine": IMAGES.but(changes=(_without_affine,)),
        "dropout before the last layer": IMAGES.but(changes=(_dropped,)),
    }


def _bottleneck(model: nn.Module) -> None:
    model[4], model[6] = nn.Linear(64, 8), nn.Linear(8, 64)  # type: ignore[index]


def _but_first(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())[2:]


class _Gate(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.gate = body, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate * self.body(x)


def _gated(model: nn.Module) -> None:
    for number, block in enumerate(model.blocks):  # type: ignore[arg-type]
        model.blocks[number] = _Gate(block)  # type: ignore[index]


def _orthogonal(model: nn.Module) -> None:
    for one in model.parameters():
        nn.init.orthogonal_(one, 2**0.5) if one.ndim > 1 else nn.init.zeros_(one)


def _sparse(model: nn.Module) -> None:
    """Four of five weights of hidden layers start at zero."""
    for one in [one for one in model.parameters() if one.ndim > 1][1:-1]:
        nn.init.sparse_(one, 0.8, std=0.35)


def _two_rates(model: nn.Module) -> list:
    known = list(model.parameters())
    return [{"params": known[:4], "lr": 5e-4}, {"params": known[4:], "lr": 5e-3}]


def _triangle(step: int) -> float:
    return 0.1 + 0.9 * (1 - abs(step - 80) / 120)


def _symmetric(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    low, high = images.min(), images.max()
    return 2 * (images - low) / (high - low) - 1, labels


def _contrasts(images: Tensor) -> Tensor:
    """Every image at a contrast of its own."""
    factors = torch.rand(len(images), generator=torch.Generator().manual_seed(2)) * 1.5 + 0.5
    return images * factors.reshape(-1, *[1] * (images.ndim - 1))


class _Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * torch.randn_like(x) if self.training else x


def _noised(model: nn.Module) -> None:
    model.insert(0, _Noise())  # type: ignore[operator]


def _sparsened(images: Tensor) -> Tensor:
    """Only what is bright, at unit variance over all."""
    bright = (images - 0.5).relu()
    return bright / bright.std()


def _some_wrong(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    wrong = torch.rand(len(labels), generator=torch.Generator().manual_seed(4)) < 0.02
    return images, torch.where(wrong, (labels + 1) % 10, labels)


def _positive(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    ink = images.flatten(1).mean(1)
    return images, (1 + (ink - ink.mean()) / ink.std()).abs().unsqueeze(1)


def _weighed(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, torch.linspace(0.5, 2.0, 10))


class _Capped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 30 * (x / 30).tanh()


def _soft_cap() -> nn.Module:
    return _Capped()


def _without_affine(model: nn.Module) -> None:
    for number, one in enumerate(model):  # type: ignore[arg-type]
        if isinstance(one, nn.BatchNorm2d):
            model[number] = nn.BatchNorm2d(one.num_features, affine=False)  # type: ignore[index]


def _dropped(model: nn.Module) -> None:
    model.insert(len(model) - 1, nn.Dropout(0.4))  # type: ignore[operator,arg-type]
