"""4.5: batch normalization works between stacked recurrent layers, not across time: repeated rescaling explodes
gradients.

Untrained recurrent layers over 40 steps. Between layers the norm stands once on the way of the gradient; across time
it stands at every step, and each divides by that step's deviation. How the weight of the norm is started decides: at 1
the pre-activations of tanh have variance 1 at every step, at 0.1 (Cooijmans et al. 2017) they stay where tanh is
linear.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn as torch_nn

from normscope import nn
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import bootstrap
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Curve, Curves
from normscope.terms.verdict import Effect

STEPS, WIDTH, BATCH = 40, 32, 64
ARMS = ("none", "between layers", "across time, weight 1", "across time, weight 0.1")


def cases(seeds: int) -> list[Case]:
    """Two cells with the norm in four places."""
    return [
        {"cell": cell, "arm": arm, "seed": seed} for cell in ("RNN", "LSTM") for arm in ARMS for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """Decades of the gradient by the input at each step, latest step first, over that at the latest."""
    torch.manual_seed(case["seed"])
    build, across = getattr(nn, case["cell"]), case["arm"].startswith("across")
    first, second = (build(WIDTH, WIDTH, norm="batch" if across else None, dtype=torch.float64) for _ in range(2))
    weight = 1.0 if case["arm"].endswith("weight 1") else 0.1
    for name, parameter in [*first.named_parameters(), *second.named_parameters()]:
        if parameter.ndim == 1 and "norms" in name and name.endswith("weight"):
            torch_nn.init.constant_(parameter, weight)
    x = torch.randn(STEPS, BATCH, WIDTH, dtype=torch.float64, requires_grad=True)
    hidden = first(x)[0]
    if case["arm"] == "between layers":
        hidden = nn.BatchNorm1d(WIDTH, dtype=torch.float64)(hidden.permute(1, 2, 0)).permute(2, 0, 1)
    target = torch.randn(BATCH, WIDTH, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((second(hidden)[0][-1] * target).sum(), x)
    norms = gradient.flatten(1).norm(dim=1).clamp(min=1e-300).flip(0)
    return {"decades": (norms / norms[0]).log10().tolist()}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Decades by which the gradient grows over the steps; where the sentence says that it does not, less one decade."""
    effects = {}
    for cell in outcomes.levels("cell"):
        for arm in ARMS[1:]:
            ends = [row[-1] for row in outcomes.where(cell=cell, arm=arm).column("decades")]
            explodes = arm.startswith("across")
            told = [end if explodes else 1.0 - max(end, 0.0) for end in ends]
            word = "explodes" if explodes else "does not explode"
            effects[f"{cell}, {arm}: {word}"] = bootstrap(told, unit="decades")
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """The gradient over the lag, median network by its end."""
    rows = [
        sorted(outcomes.where(cell=cell, arm=arm), key=lambda row: row["decades"][-1])
        for cell in ("RNN", "LSTM")
        for arm in ARMS
    ]
    middle = [row[len(row) // 2] for row in rows]
    return Curves(
        title="The gradient by the input over the lag, the median network of each kind.",
        x=Axis("steps back"),
        y=Axis("decades"),
        curves=tuple(
            Curve(f"{row['cell']}, {row['arm']}", tuple(map(float, range(STEPS))), tuple(row["decades"]))
            for row in middle
        ),
    )


CLAIM = Claim(
    id="4.5",
    kind="measurement",
    en="Batch normalization works between stacked recurrent layers and not across time, where repeated rescaling "
    "explodes gradients.",
    zh="BN 可用于 RNN 层与层之间，不能用于时间步之间，因为重复的缩放会导致梯度爆炸。",
    source="004, section on recurrent networks",
    protocol="Two untrained recurrent layers of width 32 over 40 steps, torch's start, statistics of each step, "
    "float64; log₁₀ of the gradient by the first step's input over that by the last one's, median over "
    "networks. Between layers the effect is one decade less what the gradient grows.",
    decision=Decision(0.5, 0.0, "decades", "a factor of 3 over 40 steps is growth, none is none"),
    sizes={"quick": {"seeds": 7}, "full": {"seeds": 50}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("TemporalBatchNorm", "NS311"),
)
