"""2.1: tanh and sigmoid squash and make gradients vanish with depth; ReLU and LeakyReLU do not.

Each nonlinearity gets the initialization made for it, and the gradient is followed from the loss down 50 layers. The
derivative of ReLU at 0 is a convention: 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import bootstrap, exact
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Curve, Curves
from normscope.terms.activations import ACTIVATIONS
from normscope.terms.verdict import Effect

DEPTH, WIDTH = 50, 64
FUNCTIONS = ("sigmoid", "tanh", "relu", "leaky_relu")
REMEDIES = ("none", "batch norm", "layer norm", "residual")  # the sentence is decided without any


def cases(seeds: int) -> list[Case]:
    """Random networks of each nonlinearity, with the gain made for it and with a gain of 1, and with each remedy."""
    return [
        {"function": function, "gain": gain, "remedy": remedy, "seed": seed}
        for function in FUNCTIONS
        for gain, remedy in (("its own", "none"), *(("one", remedy) for remedy in REMEDIES))
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The norm of the gradient at each layer's pre-activations, over that at the last one, in decades."""
    turns = torch.Generator().manual_seed(case["seed"])
    function = getattr(F, case["function"])
    gain = ACTIVATIONS[case["function"]].gain if case["gain"] == "its own" else 1.0
    x = torch.randn(128, WIDTH, dtype=torch.float64, generator=turns)
    sites = []
    for _ in range(DEPTH):
        weight = gain * torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=turns) / WIDTH**0.5
        sites.append((x @ weight.T).requires_grad_())
        x = function(_normalized(sites[-1], case["remedy"])) + (x if case["remedy"] == "residual" else 0)
    gradients = torch.autograd.grad((x * torch.randn(x.shape, dtype=x.dtype, generator=turns)).sum(), sites)
    norms = torch.stack([gradient.norm() for gradient in gradients])
    zero = torch.zeros((), requires_grad=True)
    (at_zero,) = torch.autograd.grad(function(zero), zero)
    return {"decades": (norms / norms[-1]).log10().tolist(), "at_zero": at_zero.item()}


def _normalized(x: torch.Tensor, remedy: str) -> torch.Tensor:
    if remedy not in ("batch norm", "layer norm"):
        return x
    axis = 0 if remedy == "batch norm" else 1
    return (x - x.mean(axis, keepdim=True)) / (x.var(axis, correction=0, keepdim=True) + 1e-5).sqrt()


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Decades lost over the depth for those that should vanish; two decades less what is lost or won for the others."""
    effects, outcomes = {}, outcomes.where(remedy="none")
    for function in FUNCTIONS:
        for gain in outcomes.levels("gain"):
            ends = [row[0] for row in outcomes.where(function=function, gain=gain).column("decades")]
            vanishes = function in ("sigmoid", "tanh")
            told = [-end for end in ends] if vanishes else [2 - max(-end, 0.0) for end in ends]
            word = "vanishes" if vanishes else "does not vanish"
            effects[f"{function} {word}, gain {gain}"] = bootstrap(told, unit="decades")
    at_zero = outcomes.where(function="relu")[0]["at_zero"]
    effects["the derivative of ReLU at 0 is 0"] = exact(2.0 - 4.0 * abs(at_zero), "decades")
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """The gradient down the depth, one network of each kind."""
    outcomes = outcomes.where(remedy="none")
    rows = [
        outcomes.where(function=function, gain=gain)[0] for function in FUNCTIONS for gain in outcomes.levels("gain")
    ]
    layers = tuple(range(1, DEPTH + 1))
    return Curves(
        title="The gradient at each layer of one random network of each kind, over that at the last layer.",
        x=Axis("layer"),
        y=Axis("decades"),
        curves=tuple(Curve(f"{row['function']}, gain {row['gain']}", layers, tuple(row["decades"])) for row in rows),
    )


CLAIM = Claim(
    id="2.1",
    kind="measurement",
    en="tanh and sigmoid squash their input and make gradients vanish; ReLU and LeakyReLU do not, and the derivative "
    "of ReLU at 0 is taken as 0.",
    zh="tanh、sigmoid 把输入压缩到有限区间而使梯度消失；ReLU、LeakyReLU 不会，ReLU 在零点的导数取 0。",
    source="002, first section, causes and first remedy",
    protocol="Random networks of 50 layers of width 64 in float64, each nonlinearity with its own gain and with gain "
    "1; decades by which the gradient at layer 1 is below that at layer 50, median over networks. For functions that "
    "should not vanish the effect is two decades minus what is lost.",
    decision=Decision(1.0, 1.0, "decades", "a gradient that keeps less than a tenth over the depth has vanished"),
    sizes={"quick": {"seeds": 9}, "full": {"seeds": 50}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("NS201", "NS202", "NS117"),
)
