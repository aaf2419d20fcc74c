"""2.2: batch normalization lets sigmoid networks train.

Sigmoid networks over depth, with and without batch normalization, each at the better of two rates.
"""

from __future__ import annotations

from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Curve, Curves
from normscope.terms.verdict import Effect

DEPTHS = (2, 5, 10)
RATES = (0.03, 0.3)


def cases(seeds: int, epochs: int) -> list[Case]:
    """Every depth, norm and rate."""
    return [
        {"depth": depth, "norm": norm, "rate": rate, "epochs": epochs, "seed": seed}
        for depth in DEPTHS
        for norm in ("none", "BatchNorm")
        for rate in RATES
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The accuracy that the training ends with."""
    inputs = bench.images.x[0].numel()
    _, curve = bench.train(
        lambda: mlp(inputs, depth=case["depth"], width=64, activation="sigmoid", norm=case["norm"]),
        seed=case["seed"],
        rate=case["rate"],
        epochs=case["epochs"],
    )
    return {"final": curve.final, "diverged": curve.diverged}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The accuracy gained, each arm at its better rate."""
    effects = {}
    for depth in DEPTHS:
        with_, without = (_best(outcomes.where(depth=depth, norm=norm)) for norm in ("BatchNorm", "none"))
        effects[f"{depth} layers"] = paired([one - other for one, other in zip(with_, without)], "accuracy")
    return effects


def _best(rows: Outcomes) -> list[float]:
    """The accuracies of the seeds at the better rate."""
    return max((rows.where(rate=rate).column("final") for rate in RATES), key=sum)


def draw(outcomes: Outcomes) -> Curves:
    """Accuracy over depth."""

    def line(norm: str) -> tuple[float, ...]:
        ends = [_best(outcomes.where(norm=norm, depth=depth)) for depth in DEPTHS]
        return tuple(sum(end) / len(end) for end in ends)

    return Curves(
        title="Accuracy of sigmoid networks over depth, each at its better rate, mean of seeds.",
        x=Axis("layers"),
        y=Axis("accuracy on the test split", share=True),
        curves=tuple(Curve(norm, tuple(map(float, DEPTHS)), line(norm)) for norm in ("none", "BatchNorm")),
    )


CLAIM = Claim(
    id="2.2",
    kind="training",
    en="Batch normalization lets sigmoid networks train.",
    zh="在 sigmoid 激活函数中使用 BN，可防止梯度为 0，使网络得以训练。",
    source="002, first section, second remedy",
    protocol="Dense sigmoid networks of 2, 5 and 10 layers, Xavier's weights, SGD with momentum 0.9, batch 64, each "
    "arm at the better of the rates 0.03 and 0.3; final test accuracy with less without, paired by seed.",
    decision=Decision(0.2, 0.05, "accuracy gained", "20 points separate a network that trains from one that does not"),
    sizes={"quick": {"seeds": 5, "epochs": 6}, "full": {"seeds": 10, "epochs": 40}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS117", "NS202"),
)
