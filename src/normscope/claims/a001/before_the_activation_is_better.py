"""1.8: batch normalization before the activation is better than after it.

The same network with the norm on either side of each activation, from the same weights and on the same batches.
"""

from __future__ import annotations

from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import accuracy_by, told
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Curves
from normscope.terms.verdict import Effect

FUNCTIONS = ("relu", "tanh", "sigmoid")


def cases(seeds: int, epochs: int) -> list[Case]:
    """Each nonlinearity with the norm before and after it."""
    return [
        {"activation": name, "place": place, "epochs": epochs, "seed": seed}
        for name in FUNCTIONS
        for place in ("before", "after")
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The curve of one training."""
    inputs = bench.images.x[0].numel()
    _, curve = bench.train(
        lambda: mlp(
            inputs,
            depth=6,
            width=64,
            activation=case["activation"],
            norm="BatchNorm",
            after=case["place"] == "after",
        ),
        seed=case["seed"],
        rate=0.01,
        epochs=case["epochs"],
    )
    return {**told(curve), "area": sum(curve.accuracy[1:]) / case["epochs"]}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Accuracy before less after: at the end, and as the mean over the epochs, which counts speed."""
    effects = {}
    for name in FUNCTIONS:
        rows = outcomes.where(activation=name)
        for what, words in (("final", "in the end"), ("area", "over the training")):
            pairs = rows.pairs(what, {"place": "before"}, {"place": "after"})
            effects[f"{name}, {words}"] = paired([one - other for one, other in pairs], "accuracy")
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """Accuracy of each arm."""
    return accuracy_by(outcomes, "activation", "place", title="Accuracy with the norm on either side, mean of seeds.")


CLAIM = Claim(
    id="1.8",
    kind="training",
    en="Batch normalization before the activation function is better than after it.",
    zh="BN 一般放在激活函数之前，效果更好。",
    source="001, section 6",
    protocol="Dense networks of 6 layers, SGD with rate 0.01, momentum 0.9, batch 64; test accuracy at the end and as "
    "the mean over all epochs, norm before less norm after, paired by seed.",
    decision=Decision(0.005, -0.005, "accuracy", "half a point is the least that fifteen seeds can show"),
    sizes={"quick": {"seeds": 15, "epochs": 6}, "full": {"seeds": 20, "epochs": 40}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS108"),
)
