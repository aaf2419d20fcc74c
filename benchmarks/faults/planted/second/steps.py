"""Bad steps."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from changes import everywhere, hidden, of_a_copy
from fault import Fault, bare, grouped, stepped
from torch import Tensor, nn

Held = partial(Fault, held="second")
HIGH, LOW = ("rate_too_high",), ("rate_too_low",)


def _summed(output: Tensor, target: Tensor) -> Tensor:
    """Over the batch, where the rate was chosen for the mean."""
    loss = F.mse_loss if output.shape == target.shape else F.cross_entropy
    return loss(output, target, reduction="sum")


def _second(model: nn.Module) -> list[str]:
    return everywhere(model)[1:2]


FAULTS = (
    Held(
        "Adam's two averages exchanged",
        ("mlp", "transformer", "vision"),
        HIGH, lambda s: s.but(tuning={"betas": (0.9995, 0.9)}),
    ),
    Held(
        "loss summed over the batch under SGD",
        ("mlp", "tagger", "hourglass"), HIGH,
        lambda s: stepped(bare(s)).but(loss=_summed), lambda s: stepped(bare(s)),
    ),
    Held(
        "rate raised hundredfold half-way",
        ("tagger", "hourglass", "depthwise cifar"), HIGH,
        lambda s: bare(s).but(schedule=lambda step: 100.0 if step > 70 else 1.0), bare,
    ),
    Held(
        "one layer's rate a thousand times the others'", ("mlp", "conv", "series"),
        (*HIGH, "uneven_updates"), lambda s: grouped(_second, 1000.0)(stepped(bare(s))),
        lambda s: stepped(bare(s)), _second,
    ),
    Held(
        "body's rate a hundred-thousandth", ("lstm", "tagger", "series"),
        (*LOW, "uneven_updates", "unmoved_layer"), lambda s: grouped(hidden, 1e-5)(bare(s)), bare, hidden,
    ),
    Held(
        "warm-up that never ends", ("residual", "tagger"), LOW,
        lambda s: s.but(schedule=lambda step: step / 1e6),
    ),
    Held(
        "schedule over after eight steps", ("mlp", "lstm", "depthwise"), LOW,
        lambda s: s.but(schedule=lambda step: max(0.0, 1 - step / 8)),
    ),
    Held(
        "Adagrad at a ten-thousandth", ("mlp", "tagger"), LOW,
        lambda s: s.but(optimizer="adagrad", rate=1e-4),
    ),
    Held(
        "RMSprop at a third", ("conv", "tagger", "series"), HIGH,
        lambda s: bare(s).but(optimizer="rmsprop", rate=0.3), bare,
    ),
    Held(
        "L2 of 3 inside Adam", ("mlp", "lstm", "conv cifar"), ("decayed_weights",),
        lambda s: bare(s).but(tuning={"weight_decay": 3.0}), bare,
    ),
    Held(
        "AdamW with a decay of 100", ("tagger", "series"), ("decayed_weights",),
        lambda s: bare(s).but(optimizer="adamw", tuning={"weight_decay": 100.0}), bare,
    ),
    Held(
        "clipped to a ten-thousandth under SGD", ("series", "depthwise", "vision cifar"), LOW,
        lambda s: stepped(s).but(clip=1e-4), stepped,
    ),
    Held(
        "gradients never cleared, further networks", ("tagger", "mixer", "depthwise cifar"),
        ("accumulated_gradient",), lambda s: stepped(s).but(loop="never cleared"), stepped,
    ),
    Held(
        "optimizer of another model, further networks", ("tagger", "hourglass"), ("unmoved_layer",),
        lambda s: s.but(trains=of_a_copy), sites=everywhere,
    ),
)  # fmt: skip
