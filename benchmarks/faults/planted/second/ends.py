"""Bad last layers and losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from changes import before_head, ending
from fault import Fault, bare, stepped
from setups import Setup
from torch import Tensor, nn

from planted.second.inputs import asked, fed, to_amount

Held = partial(Fault, held="second")
RESTRICTED = ("restricted_output",)


def _negated(setup: Setup) -> Setup:
    loss = setup.loss
    return setup.but(loss=lambda output, target: -loss(output, target))


def _ended(end: Callable[[], nn.Module]):
    return lambda s: s.but(options={"end": end})


def _lower(setup: Setup) -> Setup:
    """Targets most of which are below zero."""
    return asked(_below)(to_amount(setup))


def _below(inputs: Tensor, targets: Tensor) -> Tensor:
    return targets - 3


def _pairs(output: Tensor, target: Tensor) -> Tensor:
    """(N, 1) less (N,): every answer with every target."""
    return (output - target.squeeze(1)).pow(2).mean()


def _by_hand(output: Tensor, target: Tensor) -> Tensor:
    """The logarithm of a softmax that can be zero."""
    return -(F.one_hot(target, output.shape[1]) * output.softmax(1).log()).sum(1).mean()


def _upside_down(output: Tensor, target: Tensor) -> Tensor:
    """The weight of one class is its count, not one over it."""
    return F.cross_entropy(output, target, torch.tensor([2000.0] + [1.0] * (output.shape[1] - 1)))


class Halved(nn.Module):
    """Adds a little of the squares, taken in half precision, which ends at 65,504."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-8 * (1000 * x).half().pow(2).float()


def _large(images: Tensor) -> Tensor:
    return 1000 * images


FAULTS = (
    Held(
        "loss of the wrong sign", ("lstm", "tagger", "hourglass"),
        ("unbounded_loss",), _negated,
    ),
    Held(
        "softplus for targets below zero", ("mlp", "lstm", "series"), RESTRICTED,
        lambda s: _ended(nn.Softplus)(_lower(s)), _lower, ending,
    ),
    Held(
        "sigmoid for standardized pixels", ("hourglass", "hourglass cifar"), RESTRICTED, _ended(nn.Sigmoid),
        sites=ending,
    ),
    Held(
        "logits kept within a hundredth", ("mlp", "lstm", "depthwise cifar"), RESTRICTED,
        lambda s: _ended(lambda: nn.Hardtanh(-0.01, 0.01))(stepped(s)), stepped, ending,
    ),
    Held(
        "a loss over all pairs of answer and target", ("mlp", "lstm"), ("mixed_samples", "unheard_targets"),
        lambda s: to_amount(s).but(loss=_pairs), to_amount,
    ),
    Held(
        "layer norm over the one output", ("mlp", "lstm", "series"), ("lone_element",),
        lambda s: _ended(lambda: nn.LayerNorm(1))(to_amount(s)), to_amount, ending,
    ),
    Held(
        "cross-entropy written by hand", ("mlp", "conv", "series"), ("nonfinite_values",),
        lambda s: fed(_large)(bare(s)).but(loss=_by_hand), lambda s: fed(_large)(bare(s)),
    ),
    Held(
        "squares in half precision", ("mlp", "conv", "lstm"), ("nonfinite_values",),
        lambda s: s.but(changes=(before_head(Halved),)),
        sites=lambda m: [path for path, one in m.named_modules() if isinstance(one, Halved)],
    ),
    Held(
        "softmax over the sequence", ("tagger",), (*RESTRICTED, "double_softmax"), _ended(lambda: nn.Softmax(2)),
        sites=ending,
    ),
    Held(
        "softmax before cross-entropy, further networks", ("mixer", "vision"),
        (*RESTRICTED, "double_softmax"), lambda s: _ended(lambda: nn.Softmax(1))(stepped(s)), stepped, ending,
    ),
    Held(
        "a class two thousand times as heavy", ("mlp", "conv"), ("lopsided_loss",),
        lambda s: s.but(loss=_upside_down),
    ),
)  # fmt: skip
