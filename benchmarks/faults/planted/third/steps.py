"""Bad steps."""

from __future__ import annotations

import torch
from changes import before_head, everywhere, hidden
from fault import grouped
from setups import Setup
from torch import Tensor, nn

from planted.third.ways import Held, bare, stepped

HIGH, LOW, UNMOVED = ("rate_too_high",), ("rate_too_low",), ("unmoved_layer",)


def _scaled(factor: float):
    """Multiplies the loss."""

    def change(setup: Setup) -> Setup:
        loss = setup.loss
        return setup.but(loss=lambda output, target: factor * loss(output, target))

    return change


def _peak(step: int) -> float:
    """One cycle, whose peak was taken for a multiple."""
    return 600 * max(0.0, 1 - abs(step - 60) / 60) + 0.5


def _capped(model: nn.Module) -> None:
    """Each element of each gradient within a hundred-thousandth."""
    for one in model.parameters():
        one.register_hook(lambda gradient: gradient.clamp(-1e-5, 1e-5))


def _last(model: nn.Module) -> list[str]:
    return everywhere(model)[-1:]


class Untracked(nn.Module):
    """Runs without a graph."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.body(x)


def _untracked(model: nn.Module) -> None:
    for name in ("each", "body", "upper", "lower"):
        if hasattr(model, name):
            setattr(model, name, Untracked(getattr(model, name)))
    if isinstance(model, nn.Sequential):
        for place in range(len(model) - 3):
            model[place] = Untracked(model[place])


def _without_graph(model: nn.Module) -> list[str]:
    return [path for path in everywhere(model) if "body" in path.split(".")]


def _but_the_top(model: nn.Module) -> list[nn.Parameter]:
    """A prefix that fits too much: only the last two layers with weights learn."""
    return [one for path in everywhere(model)[-2:] for one in model.get_submodule(path).parameters()]


def _below_the_top(model: nn.Module) -> list[str]:
    return everywhere(model)[:-2]


class _Reversing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -gradient


class Reversed(nn.Module):
    """A backward written by hand, with the wrong sign."""

    def forward(self, x: Tensor) -> Tensor:
        return _Reversing.apply(x)  # type: ignore[return-value]


FAULTS = (
    Held(
        "Adam at a rate of SGD's", ("scribe", "tcn", "coder", "words"), HIGH, lambda s: s.but(rate=0.3),
    ),
    Held(
        "a rate twenty times too high, Adam", ("words", "tcn", "experts"), HIGH, lambda s: s.but(rate=20 * s.rate),
    ),
    Held(
        "a fiftieth of the rate, Adam", ("funnel", "scribe", "coder", "lenet"), LOW, lambda s: s.but(rate=s.rate / 50),
    ),
    Held(
        "SGD at a rate of Adam's, no momentum", ("funnel", "bigru", "coder", "lenet"), LOW,
        lambda s: stepped(s).but(rate=3e-4, tuning={"momentum": 0.0}), stepped,
    ),
    Held(
        "one cycle with a peak of six hundredfold", ("towers", "bigru", "points"), HIGH,
        lambda s: s.but(schedule=_peak),
    ),
    Held(
        "an epoch's decay at every batch", ("segmenter", "points", "scribe"), LOW,
        lambda s: s.but(schedule=lambda step: 0.7**step),
    ),
    Held(
        "a scaled loss never scaled back, SGD", ("experts", "lenet", "segmenter"), HIGH,
        lambda s: _scaled(65536.0)(stepped(s)), stepped,
    ),
    Held(
        "loss over the size of the data, SGD", ("strided", "towers", "inception cifar"), LOW,
        lambda s: _scaled(1 / 50000)(stepped(s)), stepped,
    ),
    Held(
        "gradients within a hundred-thousandth, SGD", ("words", "tcn", "convnext"), LOW,
        lambda s: stepped(s).but(changes=(_capped,)), stepped,
    ),
    Held(
        "maximized", ("resmlp", "scribe", "strided cifar"), ("unbounded_loss",),
        lambda s: s.but(tuning={"maximize": True}),
    ),
    Held(
        "last layer's rate three thousand times the others'", ("lenet", "experts", "tcn"), (*HIGH, "uneven_updates"),
        lambda s: grouped(_last, 3000.0)(stepped(s)), stepped, _last,
    ),
    Held(
        "a rate of zero for all but the last layer", ("tcn", "scribe", "bigru", "points"), UNMOVED,
        lambda s: grouped(hidden, 0.0)(s), sites=hidden,
    ),
    Held(
        "body under no_grad", ("points", "bigru", "towers", "strided"), UNMOVED,
        lambda s: s.but(changes=(_untracked,)), sites=_without_graph,
    ),
    Held(
        "only the last two layers in the optimizer", ("coder", "coder cifar", "resnet"), UNMOVED,
        lambda s: s.but(trains=_but_the_top), sites=_below_the_top,
    ),
    Held(
        "gradients never cleared, Adam", ("tcn", "coder", "scribe"), ("accumulated_gradient",),
        lambda s: s.but(loop="never cleared"),
    ),
    Held(
        "gradients never cleared, networks again", ("strided", "convnext", "segmenter"), ("accumulated_gradient",),
        lambda s: stepped(s).but(loop="never cleared"), stepped,
    ),
    Held(
        "a backward of the wrong sign", ("funnel", "tcn", "resnet"), (),
        lambda s: s.but(changes=(before_head(Reversed),)),
    ),
    Held(
        "ε of 30 in RMSprop", ("experts", "resmlp", "inception"), LOW,
        lambda s: s.but(optimizer="rmsprop", rate=1e-3, tuning={"eps": 30.0}),
        lambda s: s.but(optimizer="rmsprop", rate=1e-3),
    ),
    Held(
        "L2 of 0.5 under SGD, networks again", ("bigru", "points", "coder"), ("decayed_weights",),
        lambda s: stepped(s).but(tuning={"weight_decay": 0.5}), stepped,
    ),
    Held(
        "one sample a step at the rate of sixty-four, SGD", ("lenet", "towers", "words", "tcn"), HIGH,
        lambda s: stepped(bare(s)).but(batch=1), lambda s: stepped(bare(s)),
    ),
    Held(
        "L2 of 0.1 inside Adam", ("funnel", "lenet", "tcn", "coder"), ("decayed_weights",),
        lambda s: s.but(tuning={"weight_decay": 0.1}),
    ),
    Held(
        "momentum of 1", ("resmlp", "funnel", "lenet"), HIGH, lambda s: stepped(bare(s)).but(tuning={"momentum": 1.0}),
        lambda s: stepped(bare(s)),
    ),
)  # fmt: skip
