"""Bad starts."""

from __future__ import annotations

from changes import (
    aligned,
    bias,
    everywhere,
    fill,
    fill_at,
    first,
    forgetful,
    hidden,
    middle,
    normal,
    peaked,
    recurrent,
    scale,
    scale_at,
)  # fmt: skip
from fault import (
    ALL,
    CIFAR,
    DEAD,
    FADING,
    HIGH,
    LOW,
    PLAIN,
    SATURATED,
    STACKS,
    START,
    UNMOVED,
    Fault,
    bare,
    deep,
    deep_normed,
    local,
    stepped,
)  # fmt: skip
from setups import Setup
from torch import nn


def recurrence(setup: Setup) -> Setup:
    """A plain recurrent network."""
    return setup.but(options={"kind": "rnn"}, rate=3e-3)


def _large(factor: float):
    """All weights too large; where a norm follows each layer that does nothing, so without norms."""
    return lambda s: (deep(6)(s) if s.kind in PLAIN else bare(s)).but(changes=(scale(factor),))


def _small(factor: float):
    return lambda s: (deep(8)(s) if s.kind in PLAIN else stepped(bare(s))).but(changes=(scale(factor),))


def _of_small(setup: Setup) -> Setup:
    return deep(4)(setup) if setup.kind in PLAIN else stepped(bare(setup))


FAULTS = (
    Fault(
        "weights all alike", ALL, ("symmetric_units",), lambda s: bare(s).but(changes=(fill(0.02),)), bare, everywhere,
        seen=("mlp", "transformer"),
    ),
    Fault(
        "weights all zero", ALL, ("symmetric_units", *UNMOVED), lambda s: bare(s).but(changes=(fill(0.0),)), bare,
        everywhere, seen=("mlp", "lstm"),
    ),
    Fault(
        "one layer's units all alike", ALL, ("symmetric_units", "rank_collapse"),
        lambda s: local(s).but(changes=(fill_at(middle, 0.05, 0.0),)), local, middle,
    ),
    Fault(
        "weights of deviation 1, tanh", (*PLAIN, "residual", "lstm"), (*SATURATED, "exploding_gradient"),
        lambda s: (deep(8, nn.Tanh)(s) if s.kind in STACKS else s).but(changes=(normal(1.0),)),
        lambda s: deep(4, nn.Tanh)(s) if s.kind in PLAIN else s,
        hidden, seen=PLAIN,
    ),
    Fault(
        "weights ten times too large", ALL, (*START, *HIGH), _large(10.0),
        lambda s: deep(4)(s) if s.kind in PLAIN else s, everywhere, seen=PLAIN,
    ),
    Fault(
        "weights ten times too small", ALL, (*FADING, *LOW), _small(0.1), _of_small, everywhere, seen=PLAIN,
    ),
    Fault(
        "first layer of almost no weight", ALL, (*FADING, *LOW),
        lambda s: stepped(bare(s)).but(changes=(scale_at(first, 1e-5),)), lambda s: stepped(bare(s)), first,
    ),
    Fault(
        "torch's weights, 20 relu layers", PLAIN, FADING, deep(20), deep_normed(8), hidden, seen=PLAIN,
    ),
    Fault(
        "sigmoid layers, ten of them", STACKS, (*FADING, "saturated_activation"), deep(10, nn.Sigmoid),
        deep_normed(6, nn.Sigmoid), hidden, seen=PLAIN,
    ),
    Fault(
        "hard sigmoids", STACKS, (*FADING, "saturated_activation"), deep(8, nn.Hardsigmoid),
        deep_normed(6, nn.Hardsigmoid), hidden, seen=("mlp",),
    ),
    Fault(
        "biases of −6, relu", (*STACKS, *CIFAR), (*DEAD, "poor_initialization"),
        lambda s: bare(s).but(changes=(bias(-6.0),)),
        bare, hidden, seen=PLAIN,
    ),
    Fault(
        "one layer dead by its biases", (*ALL, *CIFAR), (*DEAD, "poor_initialization"),
        lambda s: local(s).but(changes=(fill_at(middle, None, -25.0),)), local, middle,
    ),
    Fault(
        "biases of +8, tanh", STACKS, (*SATURATED, *DEAD), lambda s: deep(4, nn.Tanh)(s).but(changes=(bias(8.0),)),
        deep(4, nn.Tanh), hidden, seen=PLAIN,
    ),
    Fault(
        "one tanh layer far too large", STACKS, SATURATED,
        lambda s: stepped(deep(3, nn.Tanh)(s)).but(changes=(scale_at(first, 300.0),)),
        lambda s: stepped(deep(3, nn.Tanh)(s)), first,
    ),
    Fault(
        "rows of weights alike", STACKS, ("rank_collapse", "symmetric_units", "poor_initialization"),
        lambda s: bare(s).but(options={"depth": 8}, changes=(aligned,), rate=2e-4), lambda s: s.but(rate=2e-3),
        hidden, seen=("mlp",),
    ),
    Fault(
        "recurrent weights that explode", ("lstm",), ("exploding_gradient", *HIGH, "saturated_activation"),
        lambda s: recurrence(s).but(changes=(recurrent(4.0),)), recurrence, first, seen=("lstm",),
    ),
    Fault(
        "recurrent weights that vanish", ("lstm",), (*FADING, "saturated_activation"),
        lambda s: stepped(recurrence(s)).but(rate=0.02, changes=(recurrent(0.02),)), recurrence, first,
        seen=("lstm",),
    ),
    Fault(
        "gates shut", ("lstm",), (*FADING, *SATURATED, *DEAD, *UNMOVED), lambda s: s.but(changes=(forgetful,)),
        sites=first,
    ),
    Fault(
        "attention that sees one place", ("transformer",), ("entropy_collapse", "saturated_activation"),
        lambda s: stepped(s).but(changes=(peaked,), rate=0.02), stepped,
        lambda m: [path for path in everywhere(m) if path.endswith("self_attn")], seen=("transformer",),
    ),
)  # fmt: skip
