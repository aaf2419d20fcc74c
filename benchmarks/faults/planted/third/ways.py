"""What the third set trains its networks by, and asks them."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from fault import Fault
from setups import Setup
from torch import Tensor

from planted.second.inputs import amount

Held = partial(Fault, held="third")
Data = tuple[Tensor, Tensor]
_RATES = {"lenet": 0.1, "bigru": 0.3, "tcn": 0.03, "segmenter": 0.1, "coder": 0.2, "towers": 0.1}


def stepped(setup: Setup) -> Setup:
    """By SGD."""
    return setup.but(optimizer="sgd", rate=_RATES.get(setup.kind, 0.05))


def bare(setup: Setup) -> Setup:
    """Without norms."""
    return setup.but(options={"norm": None})


def normed(setup: Setup) -> Setup:
    """With batch normalization."""
    return setup.but(options={"norm": "batch"})


def slow(setup: Setup) -> Setup:
    """By SGD, without norms."""
    return stepped(bare(setup))


def regressing(setup: Setup) -> Setup:
    """Asked for one number of deviation 1."""
    return setup.but(options={"outputs": 1}, data=amount, loss=F.mse_loss, score="error")


def _above(images: Tensor, labels: Tensor) -> Data:
    return images, (labels > 4).float().unsqueeze(1)


def binary(setup: Setup) -> Setup:
    """Asked for one of two classes by one logit."""
    return setup.but(
        options={"outputs": 1}, data=_above, loss=F.binary_cross_entropy_with_logits, score="binary", steps=250
    )


def _odd(images: Tensor, labels: Tensor) -> Data:
    return images, labels % 2


def parity(setup: Setup) -> Setup:
    """Asked whether the digit is odd."""
    return setup.but(options={"outputs": 2}, data=_odd, steps=300)
