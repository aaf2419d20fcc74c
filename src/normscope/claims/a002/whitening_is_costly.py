"""2.7, the cost: whitening every layer is ideal but costly, and must be differentiable.

One forward and one backward pass of the layer by itself, in processor time, against batch normalization on the same
input; and whether its gradient is that of finite differences.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from normscope import nn
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import bootstrap, exact
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Column, Profile, Rule
from normscope.terms.verdict import Effect

KINDS = {"ZCA": nn.DecorrelatedBatchNorm, "IterNorm": nn.IterNorm}
WIDTHS = (16, 64, 256)
REPEATS = 5


def cases(seeds: int) -> list[Case]:
    """Both whitenings in layers of three widths; each case times its own batch normalization beside it."""
    return [
        {"kind": kind, "channels": channels, "seed": seed}
        for kind in KINDS
        for channels in WIDTHS
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """Processor seconds of whitening and of batch normalization, and whether the gradient is right."""
    torch.manual_seed(case["seed"])
    x = torch.randn(512, case["channels"], requires_grad=True)
    one, other = KINDS[case["kind"]](case["channels"]), nn.BatchNorm1d(case["channels"])
    small = KINDS[case["kind"]](3, dtype=torch.float64)
    exactly = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    return {
        "whitening": _seconds(one, x),
        "batch": _seconds(other, x),
        "differentiable": torch.autograd.gradcheck(small, (exactly,), raise_exception=False),
    }


def _seconds(layer: torch.nn.Module, x: torch.Tensor) -> float:
    """The fastest of a few passes, which has waited the least for the machine."""
    took = []
    for _ in range(REPEATS):
        started = time.process_time()
        layer(x).square().sum().backward()
        took.append(time.process_time() - started)
    return min(took)


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """How many times the cost doubles."""
    effects = {}
    for kind in KINDS:
        for channels in WIDTHS:
            rows = outcomes.where(kind=kind, channels=channels)
            ratios = torch.tensor([row["whitening"] / row["batch"] for row in rows]).log2().tolist()
            effects[f"{kind} is costly, {channels} channels"] = bootstrap(ratios, unit="doublings")
        right = all(outcomes.where(kind=kind).column("differentiable"))
        effects[f"{kind} is differentiable"] = exact(2.0 if right else 0.0, "doublings")
    return effects


def draw(outcomes: Outcomes) -> Profile:
    """The ratio of the costs over the width."""
    places = tuple(f"{channels} channels" for channels in WIDTHS)
    return Profile(
        title="The processor time of whitening over that of batch normalization, forward and backward.",
        places=places,
        roles=("",) * len(places),
        x=Axis("times batch normalization", log=True),
        columns=tuple(
            Column(kind, tuple(2**effect.value for name, effect in weigh(outcomes).items() if f"{kind} is c" in name))
            for kind in KINDS
        ),
        rules=(Rule(2.0, "twice"),),
    )


CLAIM = Claim(
    id="2.7",
    kind="measurement",
    en="Whitening every layer is ideal but costly, and must be differentiable.",
    zh="对每一层做白化最理想，但代价很高，并且必须可导。",
    source="002, section on normalization, basic idea",
    protocol="Forward and backward pass of ZCA and of iterative whitening on 512 samples of 16, 64 and 256 channels, "
    "the fastest of five in processor time, over batch normalization's; log₂ of the ratio, median over repetitions. "
    "Gradients against finite differences in float64 (counted as 2 if right, 0 if not).",
    decision=Decision(1.0, 0.0, "doublings of the cost", "twice the cost is costly, no more than the same is not"),
    sizes={"quick": {"seeds": 5}, "full": {"seeds": 20}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("DecorrelatedBatchNorm", "IterNorm"),
)
