"""1.10: mini-batches of unlike distribution slow the training: the network chases each one.

Batches of mixed classes against batches sorted by class, with and without batch normalization, from the same weights.
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

NORMS = ("none", "BatchNorm", "LayerNorm")


def cases(seeds: int, epochs: int) -> list[Case]:
    """Both orders for three norms."""
    return [
        {"norm": norm, "order": order, "epochs": epochs, "seed": seed}
        for norm in NORMS
        for order in ("shuffled", "sorted")
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The curve of one training."""
    inputs = bench.images.x[0].numel()
    _, curve = bench.train(
        lambda: mlp(inputs, depth=3, width=64, norm=case["norm"]),
        seed=case["seed"],
        rate=0.01,
        epochs=case["epochs"],
        order=case["order"],
    )
    return told(curve)


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The accuracy of mixed batches less that of sorted ones."""
    return {
        norm: paired(
            [
                one - other
                for one, other in outcomes.where(norm=norm).pairs("final", {"order": "shuffled"}, {"order": "sorted"})
            ],
            "accuracy",
        )
        for norm in NORMS
    }


def draw(outcomes: Outcomes) -> Curves:
    """Accuracy of each arm."""
    return accuracy_by(outcomes, "norm", "order", title="Accuracy with mixed and with sorted batches, mean of seeds.")


CLAIM = Claim(
    id="1.10",
    kind="training",
    en="Mini-batches of unlike distribution slow the training, because the network chases each one.",
    zh="各批训练数据分布互不相同时，网络每次迭代都要去适应不同分布，训练速度大大降低。",
    source="001, section 0",
    protocol="Dense networks of 3 layers, SGD with rate 0.01, momentum 0.9, batch 64, an equal number of epochs over "
    "the same images, in random order or sorted by class; final test accuracy, paired by seed.",
    decision=Decision(0.05, 0.0, "accuracy lost by sorting", "5 points are a difference that a user sees"),
    sizes={"quick": {"seeds": 10, "epochs": 8}, "full": {"seeds": 10, "epochs": 60}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS213"),
)
