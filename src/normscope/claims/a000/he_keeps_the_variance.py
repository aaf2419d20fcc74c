"""0.10: Xavier's or He's initialization keeps the variance stable from layer to layer.

He's keeps the mean square of the pre-activations of ReLU layers in expectation, Xavier's that of linear ones. With
another nonlinearity each layer multiplies it by a constant: ReLU under Xavier halves it, so after 100 layers 2⁻¹⁰⁰ is
left. And a single network of finite width wanders from the expectation, the more the deeper it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import bootstrap
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Curve, Curves
from normscope.terms.verdict import Effect

DEPTHS = (10, 30, 100)
FUNCTIONS = {"linear": lambda x: x, "tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}
ARMS = (("xavier", "linear"), ("xavier", "tanh"), ("xavier", "relu"), ("xavier", "sigmoid"), ("he", "relu"))


def cases(seeds: int, width: int) -> list[Case]:
    """Each pair of initialization and nonlinearity in random networks."""
    return [
        {"start": start, "function": function, "width": width, "seed": seed}
        for start, function in ARMS
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The decades by which the variance of the pre-activations of layer d differs from that of layer 1."""
    turns = torch.Generator().manual_seed(case["seed"])
    width, function = case["width"], FUNCTIONS[case["function"]]
    deviation = ((2 if case["start"] == "he" else 1) / width) ** 0.5
    x = torch.randn(width, 64, dtype=torch.float64, generator=turns)
    variances: list[Tensor] = []
    for _ in range(max(DEPTHS)):
        x = deviation * torch.randn(width, width, dtype=torch.float64, generator=turns) @ x
        variances.append(x.var())
        x = function(x)
    return {"decades": (torch.stack(variances) / variances[0]).log10().tolist()}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Minus the decades away from the start, median over networks."""
    effects = {}
    for start, function in ARMS:
        rows = outcomes.where(start=start, function=function).column("decades")
        for depth in DEPTHS:
            away = [-abs(row[depth - 1]) for row in rows]
            effects[f"{start}, {function}, layer {depth}"] = bootstrap(away, unit="decades")
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """The variance over depth, one network of each kind."""
    first = [outcomes.where(start=start, function=function)[0] for start, function in ARMS]
    steps = tuple(range(1, max(DEPTHS) + 1))
    return Curves(
        title="The variance of the pre-activations down the depth of one random network of each kind.",
        x=Axis("layer"),
        y=Axis("decades from layer 1"),
        curves=tuple(Curve(f"{row['start']}, {row['function']}", steps, tuple(row["decades"])) for row in first),
    )


CLAIM = Claim(
    id="0.10",
    kind="measurement",
    en="Xavier's or He's initialization keeps the variance stable across layers at the start.",
    zh="Xavier 或 He 初始化使训练开始时每一层输出的方差保持稳定。",
    source="000, section 4 (3)",
    protocol="Random square networks in float64 on 64 normal inputs; the variance of the pre-activations over all "
    "units and inputs at layers 10, 30 and 100 against layer 1; the median over networks.",
    decision=Decision(-0.5, -1.0, "minus decades from layer 1", "a factor of 3 is stable, a factor of 10 is not"),
    sizes={"quick": {"seeds": 9, "width": 128}, "full": {"seeds": 30, "width": 512}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("NS206", "NS118"),
)
