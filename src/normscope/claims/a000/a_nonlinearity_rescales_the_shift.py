"""0.2: a nonlinearity enlarges or squeezes the change of its input's distribution.

The change is measured by the 1-Wasserstein distance, before the function and after it: for two distributions that a
monotone function carries along, the mean of |f(v) − f(u)| against that of |v − u| over equal quantiles. A function
whose slope is nowhere above 1 can only squeeze; to enlarge takes a slope above 1 (SELU, whose positive slope is 1.05).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import exact
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Column, Profile, Rule
from normscope.terms.verdict import Effect

FUNCTIONS = ("sigmoid", "tanh", "relu", "gelu", "selu")
CHANGES = {"[−1, 1] → [−2, 2]": ((-1, 1), (-2, 2)), "[0, 1] → [1, 2]": ((0, 1), (1, 2))}
POINTS = 100_001


def cases() -> list[Case]:
    """Each function under each change of a uniform input."""
    return [{"function": function, "change": change} for function in FUNCTIONS for change in CHANGES]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """Distance between old and new, before and after the function; the range of the new output."""
    share = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    old, new = (low + (high - low) * share for low, high in CHANGES[case["change"]])
    function = getattr(F, case["function"])
    after = [function(u).sort().values for u in (old, new)]
    return {
        "before": (new - old).abs().mean().item(),
        "after": (after[1] - after[0]).abs().mean().item(),
        "low": after[1][0].item(),
        "high": after[1][-1].item(),
    }


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """By how much, relatively, the distance grows or shrinks."""
    return {
        f"{'enlarges' if sign > 0 else 'squeezes'}: {row['function']}, {row['change']}": exact(
            sign * (row["after"] / row["before"] - 1), "relative change"
        )
        for sign in (-1, 1)
        for row in outcomes
    }


def draw(outcomes: Outcomes) -> Profile:
    """The distance after each function over the distance before."""
    return Profile(
        title="How much of a change of the input's distribution is left behind the function.",
        places=FUNCTIONS,
        roles=FUNCTIONS,
        x=Axis("distance after / distance before"),
        columns=tuple(
            Column(change, tuple(row["after"] / row["before"] for row in outcomes.where(change=change)))
            for change in outcomes.levels("change")
        ),
        rules=(Rule(1.0, "as large as before"),),
    )


CLAIM = Claim(
    id="0.2",
    kind="exact",
    en="A nonlinearity enlarges or squeezes the change of its input's distribution.",
    zh="非线性激活会放大或压缩其输入分布的变化。",
    source="000, section 2, second cause",
    protocol="A uniform input changes from [−1, 1] to [−2, 2] (the article's example) or from [0, 1] to [1, 2]; the "
    "1-Wasserstein distance between old and new behind the function, over the distance before it, in float64.",
    decision=Decision(0.01, 0.01, "relative growth or shrinkage of the distance", "less than 1% is no effect"),
    sizes={"quick": {}, "full": {}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("NS204", "NS202"),
)
