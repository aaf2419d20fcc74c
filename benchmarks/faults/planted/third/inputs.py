"""Bad data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import repeat

import torch
import torch.nn.functional as F
from changes import before_body, everywhere
from setups import Setup
from torch import Tensor, nn

from planted.second.inputs import asked, fed
from planted.third.ways import Data, Held, normed, regressing, slow

INPUT, BROKEN = ("unstandardized_input",), ("nonfinite_values",)


def _reading(model: nn.Module) -> list[str]:
    """Every layer that reads the input."""
    several = {"upper.0", "lower.0", "gate.0", *(f"experts.{number}.0" for number in range(4))}
    found = everywhere(model)
    return [path for path in found if path in several] or found[:1]


def _twice(images: Tensor) -> Tensor:
    """Divided by 255, and by 255 again."""
    return images / 255**2


def _wide(images: Tensor) -> Tensor:
    return 30 * images


def _of_bytes(images: Tensor) -> Tensor:
    """Pixels from 0 to 255, less a mean and over a deviation that are meant for 0 to 1."""
    return ((64 * images + 120).clamp(0, 255) - 0.45) / 0.225


def _seconds(images: Tensor) -> Tensor:
    """The first column holds the time, in seconds since 1970."""
    images = images.clone()
    images[:, 0] = 1.7e9 + torch.arange(len(images))
    return images


def _logged(images: Tensor) -> Tensor:
    """The logarithm of ink, of which there is none in most places."""
    return (images - images.min()).log()


def _lost(images: Tensor) -> Tensor:
    """One sample in eighty lacks a value."""
    images = images.clone()
    images[7::80].view(len(images[7::80]), -1)[:, 20] = float("nan")
    return images


def _off_by_one(inputs: Tensor, targets: Tensor) -> Tensor:
    """Each label stands a row too low."""
    return targets.roll(1, 0)


def _brightness(images: Tensor, labels: Tensor) -> Data:
    """How much ink there is, of deviation 1."""
    ink = images.mean(1)
    return images, ((ink - ink.mean()) / ink.std()).unsqueeze(1)


def _each_standardized(images: Tensor) -> Tensor:
    return (images - images.mean(1, keepdim=True)) / images.std(1, keepdim=True)


def _asked_for_ink(setup: Setup) -> Setup:
    return regressing(setup).but(data=_brightness)


def _unknown(images: Tensor) -> Tensor:
    """No word is in the vocabulary."""
    return torch.zeros_like(images)


def _as_integers(images: Tensor) -> Tensor:
    """Pixels from 0 to 1, as integers."""
    return ((64 * images + 120).clamp(0, 254) / 255).long().float()


class Repeating(Setup):
    """Left over from a test: the first batch again and again."""

    def batches(self, seed: int) -> Iterator[Tensor]:
        yield from repeat(next(super().batches(seed)), self.steps)


def _repeating(setup: Setup) -> Setup:
    same = {field.name: getattr(setup, field.name) for field in fields(setup)}
    return Repeating(**same).but(name=f"{setup.name} repeating", batch=32)


def _prices(inputs: Tensor, targets: Tensor) -> Tensor:
    return 80_000 * targets + 400_000


def _negatives(images: Tensor) -> Tensor:
    """The second half are negatives, and darker."""
    half = len(images) // 2
    return torch.cat([images[:half], -3 * images[half:] - 5])


def _transposed(images: Tensor) -> Tensor:
    """Colours last by a view, where they were to be moved."""
    return images.permute(0, 2, 3, 1).reshape(images.shape)


class ByHand(nn.Module):
    """Each feature of a batch over its deviation, which is zero where all are blank."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / x.std(0)


class Zoomed(nn.Module):
    """A random quarter of the image, enlarged; in evaluation the image."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        side = x.shape[-1] // 2
        down, right = (int(one) for one in torch.randint(side + 1, (2,)))
        return F.interpolate(x[..., down : down + side, right : right + side], scale_factor=2.0)


def _zoomed(model: nn.Module) -> None:
    if isinstance(model, nn.Sequential):
        model.insert(0, Zoomed())
    else:
        model.stem.insert(0, Zoomed())  # type: ignore[union-attr,operator]


FAULTS = (
    Held(
        "divided by 255 twice, SGD", ("lenet", "bigru", "towers"), INPUT, lambda s: fed(_twice)(slow(s)), slow,
        _reading,
    ),
    Held(
        "input thirty times too wide, SGD", ("bigru", "points", "tcn"), INPUT, lambda s: fed(_wide)(slow(s)), slow,
        _reading,
    ),
    Held(
        "pixels of bytes under the mean of fractions", ("strided cifar", "inception cifar", "resnet cifar"), INPUT,
        lambda s: fed(_of_bytes)(slow(s)), slow, _reading,
    ),
    Held(
        "seconds since 1970 in one column", ("funnel", "towers", "experts"), INPUT, lambda s: fed(_seconds)(s),
        sites=_reading,
    ),
    Held("logarithm of blank pixels", ("experts", "tcn", "resmlp"), BROKEN, fed(_logged), sites=_reading),
    Held("a value missing in one of eighty", ("points", "coder", "scribe"), BROKEN, fed(_lost), sites=_reading),
    Held(
        "batch norm by hand without an ε", ("funnel", "lenet", "resmlp"), BROKEN,
        lambda s: s.but(changes=(before_body(ByHand),)),
        sites=lambda m: [path for path, one in m.named_modules() if isinstance(one, ByHand)],
    ),
    Held(
        "labels a row off", ("lenet", "towers", "scribe", "resnet cifar"), ("unrelated_targets",), asked(_off_by_one),
    ),
    Held(
        "each image standardized, its ink asked", ("funnel", "resmlp", "experts"), ("unrelated_targets",),
        lambda s: fed(_each_standardized)(_asked_for_ink(s)), _asked_for_ink,
    ),
    Held("every word unknown", ("words",), ("constant_input",), fed(_unknown), sites=_reading),
    Held(
        "fractions cast to integers", ("strided cifar", "convnext cifar"), ("constant_input",), fed(_as_integers),
        sites=_reading,
    ),
    Held(
        "one batch for all steps", ("funnel", "resnet", "scribe", "points"), ("repeated_batch",), _repeating,
    ),
    Held(
        "each batch of one class, networks again", ("convnext", "bigru", "resnet", "words"), ("unlike_batches",),
        lambda s: s.but(order="single"),
    ),
    Held(
        "prices as they stand", ("bigru", "towers", "convnext", "scribe"), ("unstandardized_target",),
        lambda s: asked(_prices)(regressing(s)), regressing,
    ),
    Held(
        "negatives in every other batch, batch norm", ("inception", "resnet", "strided"),
        ("mixed_domains", "unlike_batches"), lambda s: fed(_negatives)(normed(s)).but(order="halves"),
        lambda s: fed(_negatives)(normed(s)),
    ),
    Held(
        "quarters of the image, enlarged, while training", ("strided", "resnet", "inception"), ("train_eval_gap",),
        lambda s: s.but(changes=(_zoomed,)),
    ),
    Held("colours last by a view", ("inception cifar",), (), fed(_transposed)),
    Held("places of pieces forgotten", ("scribe",), (), lambda s: s.but(options={"placed": False})),
)  # fmt: skip
