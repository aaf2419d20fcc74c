"""0.1: an update of layer 1 changes the distribution of layer 2's input.

The article's own numbers, by hand: x⁽²⁾ = W x + b with W from [0.1, 0.2] to [0.3, 0.4]. For inputs of mean m and
covariance C the mean of x⁽²⁾ is W·m + b and its variance W C Wᵀ. So the variance always moves here, but the mean
moves only as far as ΔW·m: where the inputs are centred and the bias stands still, it does not move at all.
"""

from __future__ import annotations

from typing import Any

import torch

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import exact
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Column, Profile
from normscope.terms.verdict import Effect

BEFORE, AFTER = ([0.1, 0.2], [0.3, 0.4])


def cases(draws: int) -> list[Case]:
    """Inputs around the origin and away from it, many draws each."""
    return [{"inputs": inputs, "seed": seed} for inputs in ("centred", "of mean (2, 2)") for seed in range(draws)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """Mean and variance of layer 2's input before and after the update, in float64."""
    x = torch.randn(1000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(case["seed"]))
    x = x - x.mean(0) + (0.0 if case["inputs"] == "centred" else 2.0)
    one, other = (x @ torch.tensor(weights, dtype=torch.float64) for weights in (BEFORE, AFTER))
    return {
        "mean": [one.mean().item(), other.mean().item()],
        "variance": [one.var(correction=0).item(), other.var(correction=0).item()],
    }


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The smallest change over all draws."""
    return {
        f"{what}, inputs {inputs}": exact(
            min(abs(after - before) for before, after in outcomes.where(inputs=inputs).column(what)), "change"
        )
        for what in ("mean", "variance")
        for inputs in outcomes.levels("inputs")
    }


def draw(outcomes: Outcomes) -> Profile:
    """Mean and variance before and after."""
    first = [outcomes.where(inputs=inputs)[0] for inputs in outcomes.levels("inputs")]
    places = tuple(f"{what}, inputs {row['inputs']}" for what in ("mean", "variance") for row in first)
    rows = [row[what] for what in ("mean", "variance") for row in first]
    return Profile(
        title="Layer 2's input before and after one update of layer 1.",
        places=places,
        roles=places,
        x=Axis("value"),
        columns=(
            Column("before", tuple(row[0] for row in rows)),
            Column("after", tuple(row[1] for row in rows)),
        ),
    )


CLAIM = Claim(
    id="0.1",
    kind="exact",
    en="An update of layer 1 changes the mean and the variance of layer 2's input.",
    zh="第一层的参数更新会改变第二层输入的均值和方差。",
    source="000, section 1 and section 2, first cause",
    protocol="x⁽²⁾ = W·x with W from [0.1, 0.2] to [0.3, 0.4], on 1,000 normal inputs with mean exactly 0 or 2; "
    "change of the mean and of the biased variance of x⁽²⁾, the smallest of all draws.",
    decision=Decision(1e-9, 1e-9, "smallest absolute change", "a change beyond the rounding of float64 is a change"),
    sizes={"quick": {"draws": 20}, "full": {"draws": 200}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("NS204",),
)
