"""Bad starts."""

from __future__ import annotations

from functools import partial

import torch
from changes import (
    attentions,
    before_head,
    everywhere,
    fill_at,
    hidden,
    layers,
    peaked,
    recurrent,
    scale_at,
    weights,
)  # fmt: skip
from fault import Fault, bare, stepped
from setups import Setup
from torch import Tensor, nn

Held = partial(Fault, held="second")
STARTED = ("poor_initialization", "unmatched_gain")
FLAT = (*STARTED, "saturated_activation")


def _middle(model: nn.Module) -> list[str]:
    """The layer with weights in the middle."""
    return everywhere(model)[len(everywhere(model)) // 2 :][:1]


def _two(model: nn.Module) -> list[str]:
    """The two layers with weights around the middle."""
    return everywhere(model)[len(everywhere(model)) // 2 - 1 :][:2]


def _last(model: nn.Module) -> list[str]:
    return everywhere(model)[-1:]


def _pair(model: nn.Module) -> list[str]:
    """The last two layers with weights."""
    return everywhere(model)[-2:]


def _uniform(low: float, high: float):
    """Draws the weights of hidden layers between two numbers."""

    def change(model: nn.Module) -> None:
        for one in weights(model)[:-1]:
            nn.init.uniform_(one, low, high)

    return change


def _negative(model: nn.Module) -> None:
    """All weights behind the first layer have the sign that keeps ReLU shut."""
    with torch.no_grad():
        for one in weights(model)[1:-1]:
            one.abs_().neg_()


def _gate(number: int, of: int, value: float):
    """Sets the biases of one of the gates of a recurrent layer."""

    def change(model: nn.Module) -> None:
        bias: Tensor = model.body.bias_ih_l0  # type: ignore[assignment]
        with torch.no_grad():
            bias.chunk(of)[number].fill_(value)

    return change


def _recurrence(kind: str):
    return lambda s: s.but(options={"kind": kind}, rate=3e-3 if kind == "rnn" else s.rate)


def _loud(model: nn.Module) -> None:
    """The places of tokens say far more than what is in them."""
    with torch.no_grad():
        model.place.mul_(2000)  # type: ignore[operator]


class Gated(nn.Module):
    """Lets through what a sigmoid allows."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 1)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x).sigmoid()


def _gated(bias: float):
    """A gate before the last layer."""

    def change(model: nn.Module) -> None:
        width: int = layers(model)[-1].in_features  # type: ignore[assignment]
        before_head(lambda: Gated(width, bias))(model)

    return change


def _tall(setup: Setup) -> Setup:
    return bare(setup).but(options={"depth": 24, "width": 8}, optimizer="sgd", rate=0.01)


def _louder(model: nn.Module) -> None:
    """He's gain in every branch, as if nothing were added up."""
    for one in weights(model)[1:-1]:
        nn.init.kaiming_normal_(one, nonlinearity="relu")


FAULTS = (
    Held(
        "a middle layer thirty times too large", ("vision", "vision cifar"), STARTED,
        lambda s: stepped(s).but(changes=(scale_at(_middle, 30.0),)), stepped, _middle,
    ),
    Held(
        "a middle layer a thousand times too large", ("mlp", "conv", "series"),
        STARTED, lambda s: stepped(bare(s)).but(changes=(scale_at(_middle, 1000.0),)), lambda s: stepped(bare(s)),
        _middle,
    ),
    Held(
        "a middle layer a thousandth", ("vision", "vision cifar"), STARTED,
        lambda s: stepped(s).but(changes=(scale_at(_middle, 1e-3),)), stepped, _middle,
    ),
    Held(
        "two neighbouring layers a ten-thousandth", ("mlp", "conv", "series"), STARTED,
        lambda s: stepped(bare(s)).but(changes=(scale_at(_two, 1e-4),)), lambda s: stepped(bare(s)), _two,
    ),
    Held(
        "last layer three hundred times too large", ("lstm", "vision"), STARTED,
        lambda s: s.but(changes=(scale_at(_last, 300.0),)), sites=_last,
    ),
    Held(
        "last layer a hundred times too large, SGD",
        ("mlp", "mixer", "tagger"),
        STARTED, lambda s: stepped(s).but(changes=(scale_at(_last, 100.0),)), stepped, _last,
    ),
    Held(
        "weights drawn from 0 to 1", ("mlp", "hourglass", "lstm"), STARTED,
        lambda s: bare(s).but(changes=(_uniform(0.0, 1.0),)), bare, hidden,
    ),
    Held(
        "weights all below zero", ("mlp", "series", "hourglass"), (*STARTED, "dead_units"),
        lambda s: bare(s).but(changes=(_negative,)), bare, hidden,
    ),
    Held(
        "two layers in a row at zero", ("mlp", "conv", "series"), (*STARTED, "symmetric_units"),
        lambda s: bare(s).but(changes=(fill_at(_pair, 0.0, 0.0),)), bare, _pair,
    ),
    Held(
        "update gate of a GRU shut", ("lstm", "tagger"), FLAT,
        lambda s: _recurrence("gru")(s).but(changes=(_gate(1, 3, 12.0),)), _recurrence("gru"), lambda m: ["body"],
    ),
    Held(
        "recurrent weights three times too large", ("lstm", "tagger"), (*FLAT, "exploding_gradient"),
        lambda s: _recurrence("rnn")(s).but(changes=(recurrent(3.0),)), _recurrence("rnn"), lambda m: ["body"],
    ),
    Held(
        "places of tokens far too loud", ("transformer", "vision cifar"), STARTED,
        lambda s: s.but(changes=(_loud,)),
    ),
    Held(
        "attention that sees one place, class token", ("vision",), (*FLAT, "entropy_collapse"),
        lambda s: stepped(s).but(changes=(peaked,)), stepped, attentions,
    ),
    Held(
        "a gate before the last layer, shut",
        ("mlp", "conv", "mixer"), FLAT,
        lambda s: s.but(changes=(_gated(-14.0),)),
        lambda s: s.but(changes=(_gated(0.0),)),
        lambda m: [path for path, one in m.named_modules() if isinstance(one, Gated)],
    ),
    Held(
        "branches at full scale, no norm", ("residual",), (*STARTED, "residual_at_full_scale"),
        lambda s: _tall(s).but(changes=(_louder,)), lambda s: s.but(options={"width": 8}), hidden,
    ),
    Held(
        "biases of −3, relu", ("series", "hourglass"), (*STARTED, "dead_units"),
        lambda s: bare(s).but(changes=(fill_at(hidden, None, -3.0),)), bare, hidden,
    ),
)  # fmt: skip
