"""Bad last layers, losses and values that are not finite."""

from __future__ import annotations

import torch.nn.functional as F
from changes import (
    Broken,
    before_head,
    below_zero,
    binary,
    ending,
    insert,
    of_probabilities,
    regression,
    rooted,
    sink,
)  # fmt: skip
from fault import ALL, BROKEN, CIFAR, DEAD, ENDS, PLAIN, UNMOVED, Fault, stepped
from setups import Setup
from torch import Tensor, nn


def to_regression(setup: Setup) -> Setup:
    return setup.but(options={"outputs": 1}, data=regression, loss=F.mse_loss, score="error", rate=5e-3, steps=300)


def to_small_regression(setup: Setup) -> Setup:
    return setup.but(options={"outputs": 1}, data=below_zero, loss=F.mse_loss, score="error", steps=250)


def to_binary(setup: Setup) -> Setup:
    return setup.but(options={"outputs": 1, "end": nn.Sigmoid}, data=binary, loss=of_probabilities, score="binary")


def _logarithm(setup: Setup) -> Setup:
    offset = {"mlp": 2.2, "conv": 2.0}.get(setup.kind, 0.3)
    place = (lambda make: insert(2, make)) if setup.kind in PLAIN else before_head
    return setup.but(changes=(place(lambda: Broken(offset)),))


def _likelihood(output: Tensor, target: Tensor) -> Tensor:
    """The loss for log probabilities."""
    return F.nll_loss(output, target)


FAULTS = (
    Fault(
        "softmax before cross-entropy", ALL, ENDS, lambda s: stepped(s).but(options={"end": lambda: nn.Softmax(1)}),
        stepped, ending, seen=("mlp", "conv", "lstm", "transformer"),
    ),
    Fault(
        "softmax over the batch", (*ALL, *CIFAR), (*ENDS, "mixed_samples"),
        lambda s: stepped(s).but(options={"end": lambda: nn.Softmax(0)}), stepped,
        ending,
    ),
    Fault(
        "relu on the logits", ALL, (*ENDS, *DEAD), lambda s: s.but(options={"end": nn.ReLU}, changes=(sink,)),
        sites=ending, seen=("mlp", "lstm", "transformer"),
    ),
    Fault(
        "sigmoid on the logits", ALL, ENDS, lambda s: stepped(s).but(options={"end": nn.Sigmoid}), stepped, ending,
        seen=PLAIN,
    ),
    Fault(
        "sigmoid for an unbounded target", ALL, (*ENDS, "saturated_activation"),
        lambda s: to_regression(s).but(options={"end": nn.Sigmoid}), to_regression, ending, seen=(*PLAIN, "lstm"),
    ),
    Fault(
        "tanh for an unbounded target", ALL, (*ENDS, "saturated_activation"),
        lambda s: to_regression(s).but(options={"end": nn.Tanh}), to_regression, ending, seen=PLAIN,
    ),
    Fault(
        "relu for targets below zero", ALL, (*ENDS, *DEAD),
        lambda s: to_small_regression(s).but(options={"end": nn.ReLU}), to_small_regression, ending,
    ),
    Fault(
        "softmax over one unit", ALL, ENDS, lambda s: to_binary(s).but(options={"end": lambda: nn.Softmax(1)}),
        to_binary, ending, seen=("mlp", "conv", "lstm", "transformer"),
    ),
    Fault(
        "log-likelihood of what is no logarithm", ALL, ("unbounded_loss", *ENDS), lambda s: s.but(loss=_likelihood),
        sites=ending,
    ),
    Fault("logarithm of what can be negative", ALL, BROKEN, _logarithm, seen=PLAIN),
    Fault("square root of zero in the loss", ALL, (*BROKEN, *UNMOVED), lambda s: s.but(loss=rooted)),
)  # fmt: skip
