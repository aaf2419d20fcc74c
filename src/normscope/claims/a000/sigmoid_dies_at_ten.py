"""0.5: sigmoid's slope at ±10 is about zero, and gradients vanish where pre-activations lie there.

The slope at x is s(1 − s), 0.25 at the most. At ±10 it is 4.5·10⁻⁵. A layer's gradient is the mean over many
pre-activations: it dies where all are shifted to one end. Where they are only spread wide around zero, the few that
still lie near zero carry it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import exact, paired
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Curve, Curves, Rule
from normscope.terms.verdict import Effect

WIDTH = 32


def cases(seeds: int) -> list[Case]:
    """The slope by itself, and a two-layer network with pre-activations of two sizes."""
    slopes: list[Case] = [{"what": "slope", "at": float(at), "seed": 0} for at in range(-12, 13)]
    nets: list[Case] = [
        {"what": what, "at": at, "seed": seed}
        for what in ("shifted", "spread")
        for at in (1.0, 10.0)
        for seed in range(seeds)
    ]
    return slopes + nets


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The slope, or the gradient of a layer whose pre-activations lie `at` on one side, or are of that mean size."""
    if case["what"] == "slope":
        x = torch.tensor(case["at"], dtype=torch.float64, requires_grad=True)
        return {"slope": torch.autograd.grad(torch.sigmoid(x), x)[0].item()}
    turns = torch.Generator().manual_seed(case["seed"])
    x = torch.randn(256, WIDTH, dtype=torch.float64, generator=turns)
    hidden, last = (torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=turns) for _ in range(2))
    spread = case["at"] if case["what"] == "spread" else 1.0
    weight = nn.Parameter(hidden * spread / (x @ hidden.T).abs().mean())
    shift = case["at"] if case["what"] == "shifted" else 0.0
    (torch.sigmoid(x @ weight.T + shift) @ last.T).square().mean().backward()
    assert weight.grad is not None
    return {"gradient": weight.grad.norm().item()}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Decades that the gradient loses."""
    slopes = {row["at"]: row["slope"] for row in outcomes.where(what="slope")}
    lost = {f"slope at {at:+g}": exact(_decades(0.25, slopes[at]), "decades") for at in (-10.0, 10.0)}
    for what, named in (("shifted", "layer shifted from 1 to 10"), ("spread", "layer spread from ±1 to ±10")):
        pairs = outcomes.where(what=what).pairs("gradient", {"at": 1.0}, {"at": 10.0})
        lost[named] = paired([_decades(near, far) for near, far in pairs], "decades")
    return lost


def _decades(whole: float, left: float) -> float:
    return torch.tensor(whole / left, dtype=torch.float64).log10().item()


def draw(outcomes: Outcomes) -> Curves:
    """The slope over the pre-activation."""
    slopes = outcomes.where(what="slope")
    return Curves(
        title="The slope of sigmoid over its input.",
        x=Axis("pre-activation"),
        y=Axis("slope", log=True),
        curves=(Curve("sigmoid", tuple(slopes.column("at")), tuple(slopes.column("slope"))),),
        rules=(Rule(0.025, "one decade below the steepest"),),
    )


CLAIM = Claim(
    id="0.5",
    kind="exact",
    en="At ±10 sigmoid's gradient is about 0: a shift into saturation makes gradients vanish.",
    zh="输入为 ±10 时 sigmoid 的梯度接近 0：偏移进入饱和区会使梯度消失。",
    source="000, section 3, gradients",
    protocol="Autograd's slope in float64 over the steepest, 1/4; and the gradient of a sigmoid layer's weights when "
    "its pre-activations, of mean size 1, are shifted by 10 against 1, or spread to a mean size of 10 against 1, the "
    "rest of the network equal, paired by seed.",
    decision=Decision(1.0, 0.0, "decades lost", "a gradient that keeps less than a tenth has vanished"),
    sizes={"quick": {"seeds": 10}, "full": {"seeds": 100}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("NS202", "NS201"),
)
