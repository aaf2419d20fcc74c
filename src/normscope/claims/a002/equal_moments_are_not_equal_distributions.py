"""2.8: equal mean and variance is not equal distribution, so normalization does not directly remove the shift.

A distribution moves from a normal one to another shape; both are normalized to mean 0 and variance 1. What is left of
the shift is the 1-Wasserstein distance between the two, in standard deviations. Only where the shape stays within one
family of location and scale is nothing left.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import exact
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Column, Profile
from normscope.terms.verdict import Effect

POINTS = 200_001


def _normal(share: Tensor) -> Tensor:
    return torch.special.ndtri(share)


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {  # quantile functions
    "normal, mean 3, deviation 10": lambda share: 3 + 10 * _normal(share),
    "uniform": lambda share: share,
    "exponential": lambda share: -torch.log1p(-share),
    "normal through ReLU": lambda share: _normal(share).relu(),
    "normal of deviation 3 through sigmoid": lambda share: torch.sigmoid(3 * _normal(share)),
    "two points": lambda share: (share > 0.5).double(),
}


def cases() -> list[Case]:
    """Each shape."""
    return [{"shape": shape} for shape in SHAPES]


def run(case: Case, bench: Bench) -> dict[str, float]:
    """The distance to the standard normal distribution before and after normalization."""
    share = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    normal, x = _normal(share), SHAPES[case["shape"]](share)
    y = (x - x.mean()) / x.std(correction=0)
    return {"before": (x - normal).abs().mean().item(), "after": (y - normal).abs().mean().item()}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """What is left of the shift."""
    return {row["shape"]: exact(row["after"], "standard deviations") for row in outcomes}


def draw(outcomes: Outcomes) -> Profile:
    """The distance before and after."""
    return Profile(
        title="The distance to the standard normal distribution before and after normalization.",
        places=tuple(SHAPES),
        roles=tuple(SHAPES),
        x=Axis("1-Wasserstein distance"),
        columns=(
            Column("before", tuple(outcomes.column("before"))),
            Column("after", tuple(outcomes.column("after"))),
        ),
    )


CLAIM = Claim(
    id="2.8",
    kind="exact",
    en="Equal mean and variance is not equal distribution: normalization does not directly remove the shift.",
    zh="均值、方差一致并不等于分布相同：归一化并未直接解决偏移。",
    source="002, section on normalization, basic idea",
    protocol="Quantile functions in float64 on 200,001 points; 1-Wasserstein distance to the standard normal "
    "distribution after normalization to mean 0 and variance 1.",
    decision=Decision(0.02, 0.02, "standard deviations left of the shift", "2% of a deviation is a visible difference"),
    sizes={"quick": {}, "full": {}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("NS204",),
)
