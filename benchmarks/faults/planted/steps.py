"""Bad steps: rates, schedules, optimizers, gradients."""

from __future__ import annotations

import torch.nn.functional as F
from changes import Cut, before_head, everywhere, freeze_all_but_last, hidden, insert, learning, of_a_copy
from fault import ALL, CIFAR, HIGH, LOW, PLAIN, UNMOVED, Fault, bare, stepped
from torch import nn

KEEPING = ("dead_units", "poor_initialization", "vanishing_gradient", "rank_collapse")


def _behind_the_cut(model: nn.Module) -> list[str]:
    if isinstance(model, nn.Sequential):
        cut = next(place for place, one in enumerate(model) if isinstance(one, Cut))
        return [path for path in everywhere(model) if int(path) < cut]
    return [path for path in everywhere(model) if not path.startswith("head")]


FAULTS = (
    Fault(
        "rate too high, SGD", ALL, HIGH, lambda s: bare(s).but(optimizer="sgd", rate=8.0), stepped,
        seen=("mlp", "residual", "transformer"),
    ),
    Fault(
        "rate too high, Adam", (*ALL, *CIFAR), HIGH, lambda s: bare(s).but(rate=1.0), bare,
        seen=("mlp", "lstm", "transformer"),
    ),
    Fault(
        "rate thirty times too high", ALL, HIGH,
        lambda s: stepped(bare(s)).but(rate=30 * stepped(s).rate), lambda s: stepped(bare(s)),
    ),
    Fault(
        "momentum of 0.999", (*ALL, *CIFAR), HIGH,
        lambda s: stepped(bare(s)).but(tuning={"momentum": 0.999}), lambda s: stepped(bare(s)),
    ),
    Fault(
        "rate that grows at every step", ALL, HIGH,
        lambda s: stepped(bare(s)).but(schedule=lambda step: 1.06**step), lambda s: stepped(bare(s)),
    ),
    Fault(
        "loss scaled up under SGD", ALL, HIGH,
        lambda s: stepped(bare(s)).but(loss=lambda o, t: 300 * F.cross_entropy(o, t)), lambda s: stepped(bare(s)),
    ),
    Fault(
        "rate far too low, SGD", (*ALL, *CIFAR), LOW, lambda s: s.but(optimizer="sgd", rate=1e-6), stepped,
        seen=("mlp", "conv", "residual"),
    ),
    Fault("rate far too low, Adam", ALL, LOW, lambda s: s.but(rate=1e-7), seen=ALL),
    Fault(
        "loss scaled down under SGD", ALL, LOW,
        lambda s: stepped(s).but(loss=lambda o, t: 1e-6 * F.cross_entropy(o, t)), stepped, seen=("mlp", "lstm"),
    ),
    Fault("gradients clipped to nothing", ALL, LOW, lambda s: stepped(s).but(clip=1e-6), stepped, seen=PLAIN),
    Fault("Adam's ε above every gradient", ALL, LOW, lambda s: s.but(tuning={"eps": 1e3})),
    Fault("rate halved at every step", ALL, LOW, lambda s: s.but(schedule=lambda step: 0.5**step)),
    Fault(
        "gradients never cleared", (*ALL, *CIFAR), ("accumulated_gradient",),
        lambda s: stepped(s).but(loop="never cleared"),
        stepped, seen=("mlp", "conv", "lstm", "transformer"),
    ),
    Fault(
        "gradients cleared before the step", ALL, (*UNMOVED, *LOW), lambda s: s.but(loop="cleared before the step"),
    ),
    Fault("optimizer of another model", ALL, UNMOVED, lambda s: s.but(trains=of_a_copy), sites=everywhere),
    Fault(
        "only the last layer learns", ALL, UNMOVED, lambda s: s.but(changes=(freeze_all_but_last,), trains=learning),
        sites=hidden, seen=("conv", "residual", "lstm", "transformer"),
    ),
    Fault(
        "only the last layer in the optimizer", (*ALL, *CIFAR), UNMOVED,
        lambda s: s.but(trains=lambda m: [*m.parameters()][-2:]),
        sites=hidden, seen=("conv", "residual", "lstm", "transformer"),
    ),
    Fault(
        "graph cut in the middle", ALL, (*UNMOVED, "vanishing_gradient"),
        lambda s: s.but(changes=(insert(8, Cut) if s.kind == "conv" else before_head(Cut),)), sites=_behind_the_cut,
        seen=("conv",),
    ),
    Fault(
        "weight decay that eats the weights", ALL, ("decayed_weights", *KEEPING),
        lambda s: stepped(bare(s)).but(tuning={"weight_decay": 1.0}), lambda s: stepped(bare(s)),
    ),
)  # fmt: skip
