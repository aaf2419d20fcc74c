"""1.3: batch normalization pulls pre-activations back to mean 0 and variance 1, into the sensitive region; gradients
grow and the training is faster.

Deep sigmoid and tanh networks under `normscope.watch`, with and without the norm, from weights twice too large: where
their pre-activations lie after the training, how large the first gradient is at the start, and how far each gets.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import accuracy_by, told
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.claims.seen import saturated
from normscope.record.reader import Record
from normscope.report.parts import Curves
from normscope.terms.activations import ACTIVATIONS
from normscope.terms.verdict import Effect

DEPTH = 6
FUNCTIONS = ("sigmoid", "tanh")


def cases(seeds: int, epochs: int) -> list[Case]:
    """Both nonlinearities, with and without the norm."""
    return [
        {"activation": name, "norm": norm, "epochs": epochs, "seed": seed}
        for name in FUNCTIONS
        for norm in ("none", "BatchNorm")
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The curve, the first layer's gradient at the start, and the saturated share after the training."""
    images, last = bench.images, bench.last_step(case["epochs"])

    def build() -> nn.Sequential:
        gain = 2 * ACTIVATIONS[case["activation"]].gain
        return mlp(
            images.x[0].numel(), depth=DEPTH, width=64, activation=case["activation"], norm=case["norm"], gain=gain
        )

    def read(record: Record) -> dict[str, Any]:
        gradient = record.series("1@weight:gradient", "gradient_norm", source="probe").values[0]
        return {"gradient": float(gradient), "saturated": sum(end for _, end in saturated(record)) / DEPTH}

    curve, seen = bench.follow(
        build,
        read,
        at=lambda step: step == last,
        probe=(images.test_x[:256], images.test_y[:256]),
        measures=("activation", "gradient"),
        seed=case["seed"],
        rate=0.05,
        epochs=case["epochs"],
    )
    return {**told(curve), **seen}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Decades of gradient, share of saturation avoided, accuracy gained."""
    effects = {}
    for name in FUNCTIONS:
        rows = outcomes.where(activation=name)
        arms = {"norm": "BatchNorm"}, {"norm": "none"}
        effects[f"{name}: the gradient grows"] = paired(
            [math.log10(one / other) for one, other in rows.pairs("gradient", *arms)], "decades"
        )
        effects[f"{name}: fewer units saturate"] = paired(
            [other - one for one, other in rows.pairs("saturated", *arms)], "share"
        )
        effects[f"{name}: the training gets further"] = paired(
            [one - other for one, other in rows.pairs("final", *arms)], "accuracy"
        )
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """Accuracy of each arm."""
    return accuracy_by(outcomes, "activation", "norm", title="Accuracy from weights twice too large, mean of seeds.")


CLAIM = Claim(
    id="1.3",
    kind="training",
    en="Batch normalization pulls pre-activations back to mean 0 and variance 1, into the sensitive region: gradients "
    "grow, and the training is faster.",
    zh="BN 把激活输入拉回均值 0、方差 1，落入敏感区，使梯度变大、训练加快。",
    source="001, section 2",
    protocol="Dense networks of 6 layers from weights twice the usual, SGD with rate 0.05, momentum 0.9, batch 64: "
    "log₁₀ of the ratio of the first layer's gradients at the start, the share of saturated pre-activations "
    "after the training, and the final test accuracy; with against without batch normalization, paired by "
    "seed.",
    decision=Decision(0.05, 0.0, "decades, share or accuracy", "5 points of share are a difference that a user sees"),
    sizes={"quick": {"seeds": 5, "epochs": 5}, "full": {"seeds": 10, "epochs": 30}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS202", "NS201"),
)
