"""Sound trainings of the third held-out set, on the architectures of `others` and in ways not tried before."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from changes import learning
from others import SETUPS
from planted.second.inputs import asked, fed
from planted.third.ends import cosines
from planted.third.starts import sines as of_sines
from planted.third.starts import siren
from planted.third.ways import binary, normed, parity, regressing, stepped
from setups import Setup
from torch import Tensor, nn

FUNNEL, LENET, STRIDED, RESNET, INCEPTION, NEXT, BOTH, PAST = (
    SETUPS[name] for name in ("funnel", "lenet", "strided", "resnet", "inception", "convnext", "bigru", "tcn")
)
SCRIBE, PARTS, CODER, RESMLP, POINTS, WORDS, TOWERS, EXPERTS = (
    SETUPS[name]
    for name in ("scribe", "segmenter", "coder", "resmlp", "points", "words", "towers", "experts")
)  # fmt: skip


def others() -> list[Setup]:
    """All of them."""
    return [setup.but(name=name) for name, setup in (_nets() | _ways()).items()]


def _nets() -> dict[str, Setup]:
    """The architectures in widths, functions, norms, optimizers and batches of their own."""
    return {
        "funnel": FUNNEL,
        "funnel, batch norm, SGD of 0.3": normed(FUNNEL).but(optimizer="sgd", rate=0.3),
        "funnel from 400 units": FUNNEL.but(options={"widths": (400, 100, 25)}),
        "a wedge, ever wider": FUNNEL.but(options={"widths": (16, 32, 64, 128), "function": nn.GELU}, steps=300),
        "ten narrow layers with layer norm": FUNNEL.but(
            options={"widths": (20,) * 10, "norm": "layer"}, rate=4e-3, steps=300
        ),
        "lenet": LENET,
        "lenet, scaled sigmoid, SGD": LENET.but(options={"function": _Scaled}, optimizer="sgd", rate=0.05),
        "lenet, softsign": LENET.but(options={"function": nn.Softsign}, rate=5e-3, steps=300),
        "lenet, batch norm, Adagrad": normed(LENET).but(optimizer="adagrad", rate=0.03),
        "strided": STRIDED,
        "strided, group norm, 8 samples": STRIDED.but(options={"norm": "group"}, batch=8, rate=2e-3, steps=300),
        "strided, no norm, leaky": STRIDED.but(options={"norm": None, "function": nn.LeakyReLU}, rate=3e-3),
        "strided, CELU, RMSprop": STRIDED.but(options={"function": nn.CELU}, optimizer="rmsprop", rate=2e-3),
        "resnet": RESNET,
        "resnet of five blocks, SGD": RESNET.but(options={"depth": 5}, optimizer="sgd", rate=0.1),
        "resnet, group norm, 12 samples": RESNET.but(options={"norm": "group"}, batch=12, rate=3e-3, steps=250),
        "inception": INCEPTION,
        "inception, no norm, SELU": INCEPTION.but(options={"norm": None, "function": nn.SELU}, rate=2e-3, steps=200),
        "inception, SGD with Nesterov": INCEPTION.but(optimizer="sgd", rate=0.1, tuning={"nesterov": True}),
        "convnext": NEXT,
        "convnext, layer scale of a thousandth, AdamW": NEXT.but(
            options={"scale": 1e-3}, optimizer="adamw", tuning={"weight_decay": 0.05}
        ),
        "convnext, six blocks of 16": NEXT.but(options={"depth": 6, "width": 16}, rate=4e-3),
        "both ways": BOTH,
        "both ways, lstm of two layers": BOTH.but(options={"kind": "lstm", "layers": 2}, steps=250),
        "both ways, plain, 64 wide": BOTH.but(options={"kind": "rnn", "width": 64}, rate=2e-3, steps=350),
        "past only": PAST,
        "past only, batch norm, tanh": PAST.but(options={"norm": "batch", "function": nn.Tanh}),
        "scribe": SCRIBE,
        "scribe, one block, 8 heads": SCRIBE.but(options={"depth": 1, "heads": 8}),
        "scribe, RAdam": SCRIBE.but(optimizer="radam", rate=4e-3, steps=350),
        "parts": PARTS,
        "parts, instance norm": PARTS.but(options={"norm": "instance"}),
        "parts, no norm, SGD": PARTS.but(options={"norm": None}, optimizer="sgd", rate=0.1, steps=200),
        "coder": CODER,
        "coder, batch norm": normed(CODER),
        "coder, tanh, absolute error": CODER.but(options={"function": nn.Tanh}, loss=F.l1_loss, steps=400),
        "resmlp": RESMLP,
        "resmlp, no norm, 8 blocks": RESMLP.but(options={"norm": None, "depth": 8}, rate=1e-3),
        "resmlp, batch norm, SGD of 0.2": normed(RESMLP).but(optimizer="sgd", rate=0.2),
        "points": POINTS,
        "points, GELU, 128 wide": POINTS.but(options={"function": nn.GELU, "width": 128}, rate=3e-3, steps=250),
        "words": WORDS,
        "words, SGD of 0.1, batch norm": normed(WORDS).but(optimizer="sgd", rate=0.1),
        "towers": TOWERS,
        "towers, batch norm, batch of 300": normed(TOWERS).but(batch=300, rate=6e-3, steps=120),
        "experts": EXPERTS,
        "ten experts, SiLU": EXPERTS.but(options={"number": 10, "width": 12, "function": nn.SiLU}),
    }  # fmt: skip


def _ways() -> dict[str, Setup]:
    """What looks odd and trains well."""
    return {
        "sines from SIREN's start": of_sines(RESMLP.but(options={"norm": None})).but(changes=(siren,)),
        "squares for activations": RESMLP.but(options={"function": _Square}, rate=1e-3),
        "steps that pass the gradient": FUNNEL.but(options={"widths": (128, 64), "function": _Straight}, steps=300),
        "a maximum of pairs for activation": FUNNEL.but(build=_maxout, options={}, rate=3e-3),
        "parity, funnel": parity(FUNNEL),
        "a margin for two classes, SGD": binary(LENET).but(loss=_hinged, optimizer="sgd", rate=0.05),
        "regression, two ways": regressing(BOTH),
        "regression, points, SGD": stepped(regressing(POINTS)).but(steps=400),
        "regression, convnext": regressing(NEXT),
        "regression, scribe, log-cosh": regressing(SCRIBE).but(loss=_log_cosh),
        "regression between 2 and 5": asked(_between)(regressing(TOWERS)).but(steps=400),
        "a mean and a variance told": regressing(FUNNEL).but(
            options={"outputs": 2}, loss=_likelihood, score="error", changes=(_told_apart,), steps=300
        ),
        "cosines at sixteen, SGD": stepped(RESMLP).but(changes=(cosines(16.0),)),
        "last layer three times too large": WORDS.but(changes=(_wide_head,), rate=8e-3, steps=300),
        "last layer from zero": RESNET.but(changes=(_zero_head,)),
        "two hundred samples at a rate of 0.02, Adam": normed(FUNNEL).but(batch=200, rate=0.02, steps=150),
        "six samples, layer norm": RESMLP.but(batch=6, rate=1e-3, steps=400),
        "SGD of 1 without momentum, batch norm": STRIDED.but(optimizer="sgd", rate=1.0, tuning={"momentum": 0.0}),
        "momentum of 0.97": RESNET.but(optimizer="sgd", rate=0.01, tuning={"momentum": 0.97}),
        "β2 of 0.9": SCRIBE.but(tuning={"betas": (0.9, 0.9)}, rate=2e-3),
        "one cycle": INCEPTION.but(schedule=_cycle),
        "decay at every step, 2 in a hundred": LENET.but(schedule=lambda step: 0.98**step, rate=0.01),
        "flat, then cosine": PAST.but(schedule=_late),
        "elements of gradients within 0.01": BOTH.but(changes=(_capped,)),
        "decay of weights alone, AdamW of 0.5": NEXT.but(optimizer="adamw", trains=_undecayed),
        "first layers frozen": LENET.but(options={"width": 24}, changes=(_frozen,), trains=learning),
        "three pixels in ten hidden while training": FUNNEL.but(options={"norm": "layer"}, changes=(_hide,)),
        "inputs of unit length": fed(_unit)(TOWERS).but(rate=6e-3, steps=300),
        "inputs four times too wide, batch norm": fed(_wider)(STRIDED),
        "inputs a little off": fed(_off)(RESMLP),
        "inputs whitened": fed(_ranked)(FUNNEL).but(steps=300),
        "dropout in attention and behind it": SCRIBE.but(options={"dropout": 0.1}, steps=400),
        "dropout on the input": EXPERTS.but(changes=(_dropping_first,), steps=300),
        "a batch norm before everything": TOWERS.but(changes=(_behind_norm,)),
        "weights drawn orthogonal at 1.4": STRIDED.but(options={"norm": None}, changes=(_orthogonal,), rate=2e-3),
        "running statistics over all batches": STRIDED.but(changes=(_cumulative,), steps=250),
        "averaged weights, funnel": FUNNEL.but(loop="averaged", steps=300),
        "bfloat16, resmlp": RESMLP.but(loop="autocast", steps=100),
        "four batches a step, lenet": LENET.but(loop="accumulated", batch=16),
        "three classes twice as heavy": TOWERS.but(loss=_heavier),
        "smoothing of 0.2": NEXT.but(loss=_smooth),
        "cifar resnet": SETUPS["resnet cifar"].but(steps=200),
        "cifar strided, SGD": SETUPS["strided cifar"].but(optimizer="sgd", rate=0.05, steps=280),
        "cifar inception": SETUPS["inception cifar"],
        "cifar coder": SETUPS["coder cifar"],
    }  # fmt: skip


class _Scaled(nn.Module):
    """LeCun's activation."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * (2 / 3 * x).tanh()


class _Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().square()


class _Straight(nn.Module):
    """A sign, whose gradient is that of a hard tanh."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-1, 1) + (x.sign() - x.clamp(-1, 1)).detach()


class _Maxout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)).amax(2)


def _maxout() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 96), _Maxout(), nn.Linear(48, 64), _Maxout(), nn.Linear(32, 10)
    )  # fmt: skip


def _hinged(output: Tensor, target: Tensor) -> Tensor:
    return (1 - (2 * target - 1) * output).relu().mean()


def _log_cosh(output: Tensor, target: Tensor) -> Tensor:
    gap = output - target
    return (gap + F.softplus(-2 * gap) - math.log(2)).mean()


def _between(inputs: Tensor, targets: Tensor) -> Tensor:
    return 3.5 + 0.8 * targets


class _First(nn.Module):
    """In evaluation the mean alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x[:, :1]


def _told_apart(model: nn.Module) -> None:
    model.append(_First())  # type: ignore[operator]


def _likelihood(output: Tensor, target: Tensor) -> Tensor:
    return F.gaussian_nll_loss(output[:, :1], target, F.softplus(output[:, -1:]) + 0.01)


def _wide_head(model: nn.Module) -> None:
    with torch.no_grad():
        model.head[-1].weight.mul_(3)  # type: ignore[index]


def _zero_head(model: nn.Module) -> None:
    nn.init.zeros_(model.head.weight)  # type: ignore[union-attr]


def _cycle(step: int) -> float:
    return 0.1 + 2.9 * max(0.0, 1 - abs(step - 40) / 60)


def _late(step: int) -> float:
    return 1.0 if step < 150 else 0.5 * (1 + math.cos(math.pi * (step - 150) / 100))


def _capped(model: nn.Module) -> None:
    for one in model.parameters():
        one.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))


def _undecayed(model: nn.Module) -> list:
    known = list(model.parameters())
    return [
        {"params": [one for one in known if one.ndim > 1], "weight_decay": 0.5},
        {"params": [one for one in known if one.ndim < 2], "weight_decay": 0.0},
    ]


def _frozen(model: nn.Module) -> None:
    for one in list(model.parameters())[:2]:
        one.requires_grad_(False)


def _hide(model: nn.Module) -> None:
    model.insert(0, nn.Dropout(0.3))  # type: ignore[operator]


def _unit(images: Tensor) -> Tensor:
    return 8 * F.normalize(images, dim=1)


def _wider(images: Tensor) -> Tensor:
    return 4 * images


def _off(images: Tensor) -> Tensor:
    return images + 1


def _ranked(images: Tensor) -> Tensor:
    """Decorrelated (ZCA), each direction at unit variance but for the smallest."""
    gaps = images - images.mean(0)
    _, sizes, turned = torch.linalg.svd(gaps / len(images) ** 0.5, full_matrices=False)
    return gaps @ turned.T / (sizes + 0.3) @ turned


def _dropping_first(model: nn.Module) -> None:
    for expert in model.experts:  # type: ignore[union-attr]
        expert.insert(0, nn.Dropout(0.2))


class _Behind(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.norm, self.body = nn.BatchNorm1d(32), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.norm(x))


def _behind_norm(model: nn.Module) -> None:
    model.upper, model.lower = _Behind(model.upper), _Behind(model.lower)  # type: ignore[arg-type]


def _orthogonal(model: nn.Module) -> None:
    for one in [one for one in model.parameters() if one.ndim > 1][:-1]:
        nn.init.orthogonal_(one, 1.4)


def _cumulative(model: nn.Module) -> None:
    for one in model.modules():
        if isinstance(one, nn.BatchNorm2d):
            one.momentum = None


def _heavier(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, torch.tensor([2.0] * 3 + [1.0] * 7))


def _smooth(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, label_smoothing=0.2)
