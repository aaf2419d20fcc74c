"""Bad data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from changes import before_body, everywhere, first
from fault import Fault, bare, batch, stepped
from further import noisy
from setups import Setup
from torch import Tensor, nn

Held = partial(Fault, held="second")
Data = tuple[Tensor, Tensor]
INPUT, TARGET = ("unstandardized_input",), ("unstandardized_target",)


def fed(change: Callable[[Tensor], Tensor]):
    """Changes what the model reads, whatever it is to tell."""

    def of(setup: Setup) -> Setup:
        made = setup.data

        def data(images: Tensor, labels: Tensor) -> Data:
            inputs, targets = made(images, labels) if made else (images, labels)
            return change(inputs), targets

        return setup.but(data=data)

    return of


def asked(change: Callable[[Tensor, Tensor], Tensor]):
    """Changes what it is to tell: of the images and what was to be told."""

    def of(setup: Setup) -> Setup:
        made = setup.data

        def data(images: Tensor, labels: Tensor) -> Data:
            inputs, targets = made(images, labels) if made else (images, labels)
            return inputs, change(inputs, targets)

        return setup.but(data=data)

    return of


def _missing(images: Tensor) -> Tensor:
    """One pixel in a hundred is −9999, for missing."""
    lost = torch.rand(images.shape, generator=torch.Generator().manual_seed(5)) < 0.01
    return torch.where(lost, -9999.0, images)


def _red(images: Tensor) -> Tensor:
    """The first colour stayed between 0 and 255."""
    return torch.cat([65 * images[:, :1] + 120, images[:, 1:]], 1)


def _far(images: Tensor) -> Tensor:
    return images + 60


def _wide(images: Tensor) -> Tensor:
    return 120 * images


def _brighter(images: Tensor) -> Tensor:
    """The second half comes from another camera."""
    half = len(images) // 2
    return torch.cat([images[:half], 7 - 4 * images[half:]])


def _mixed_up(inputs: Tensor, targets: Tensor) -> Tensor:
    """Targets in another order than the inputs."""
    return targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(11))]


def amount(images: Tensor, labels: Tensor) -> Data:
    """The amount of ink in the upper half less that in the lower one, of deviation 1."""
    halves = images.flatten(1).unflatten(1, (2, -1)).mean(2)
    gap = halves[:, 0] - halves[:, 1]
    return images, ((gap - gap.mean()) / gap.std()).unsqueeze(1)


def to_amount(setup: Setup) -> Setup:
    """Regression of one number; a network of images keeps its own."""
    if setup.data is noisy:
        return setup
    return setup.but(options={"outputs": 1}, data=amount, loss=nn.functional.mse_loss, score="error")


class Drowned(nn.Module):
    """Augmentation in which the image drowns; none in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * (x + 4 * torch.randn_like(x)) if self.training else x


def _thousands(inputs: Tensor, targets: Tensor) -> Tensor:
    return 1000 * targets + 5000


def _millionth(inputs: Tensor, targets: Tensor) -> Tensor:
    return 1e-6 * targets


def _padded(images: Tensor) -> Tensor:
    """Forty blank rows behind the eight of the image."""
    rows = images.reshape(len(images), 8, 8)
    return torch.cat([rows, torch.zeros(len(rows), 40, 8)], 1)


FAULTS = (
    Held(
        "−9999 for missing pixels", ("mlp", "tagger", "series"), INPUT,
        lambda s: fed(_missing)(bare(s)), bare, first,
    ),
    Held(
        "one colour between 0 and 255", ("conv cifar", "vision cifar", "depthwise cifar"), INPUT,
        lambda s: fed(_red)(stepped(bare(s))), lambda s: stepped(bare(s)), first,
    ),
    Held(
        "input sixty deviations from zero", ("tagger", "mixer", "depthwise"), INPUT,
        lambda s: fed(_far)(bare(s)), bare, first,
    ),
    Held(
        "input 120 times too large, further networks", ("tagger", "series"), INPUT,
        lambda s: fed(_wide)(stepped(bare(s))), lambda s: stepped(bare(s)), first,
    ),
    Held(
        "labels in another order than images",
        ("lstm", "depthwise", "vision cifar"), ("unrelated_targets",), asked(_mixed_up),
    ),
    Held(
        "target in the thousands", ("conv", "lstm", "series", "hourglass"),
        TARGET, lambda s: asked(_thousands)(to_amount(s)), to_amount,
    ),
    Held(
        "target of a millionth", ("mlp", "conv", "hourglass"), TARGET,
        lambda s: asked(_millionth)(to_amount(s)), to_amount,
    ),
    Held(
        "augmentation that drowns the image, batch norm", ("mlp", "conv", "series"),
        ("train_eval_gap",), lambda s: batch(s).but(changes=(before_body(Drowned),)), batch,
    ),
    Held(
        "two cameras in turn, batch norm", ("series", "depthwise", "mlp"),
        ("mixed_domains", "unlike_batches"),
        lambda s: fed(_brighter)(batch(s)).but(order="halves"), lambda s: fed(_brighter)(batch(s)),
    ),
    Held(
        "classes in order, further networks", ("mixer", "depthwise"), ("unlike_batches",),
        lambda s: s.but(order="sorted"),
    ),
    Held(
        "forty blank steps behind the sequence", ("lstm",), ("vanishing_gradient",),
        lambda s: fed(_padded)(s).but(shape=(48, 8)), sites=everywhere,
    ),
)  # fmt: skip
