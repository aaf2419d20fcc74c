"""2.10: batch normalization needs near-identical batches: shuffle the data, and enlarge the batch.

Small and large batches, shuffled or sorted by class, with an equal number of epochs and the rate in proportion to the
batch.
"""

from __future__ import annotations

from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import ACCURACY, averages, gained
from normscope.claims.decision import Decision
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Profile
from normscope.terms.verdict import Effect

BATCHES = (4, 16, 64)


def cases(seeds: int, epochs: int) -> list[Case]:
    """Both orders at each batch size."""
    return [
        {"order": order, "batch": batch, "epochs": epochs, "seed": seed}
        for order in ("shuffled", "sorted")
        for batch in BATCHES
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The accuracy that the training ends with."""
    inputs = bench.images.x[0].numel()
    _, curve = bench.train(
        lambda: mlp(inputs, depth=3, width=64, norm="BatchNorm"),
        seed=case["seed"],
        rate=0.02 * case["batch"] / 64,
        epochs=case["epochs"],
        batch=case["batch"],
        order=case["order"],
    )
    return {"final": curve.final}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """What shuffling wins at each size, and what a larger batch wins in each order."""
    arms = {"order": "shuffled"}, {"order": "sorted"}
    effects = gained(outcomes, "final", *arms, by="batch", label="shuffling, batch {}")
    ends = {"batch": BATCHES[-1]}, {"batch": BATCHES[0]}
    return effects | gained(outcomes, "final", *ends, by="order", label="batch 64 against 4, {}")


def draw(outcomes: Outcomes) -> Profile:
    """Accuracy over the batch size."""
    title = "Accuracy with batch normalization over the batch size, mean of seeds."
    return averages(outcomes, "final", "order", "batch", title=title, axis=ACCURACY)


CLAIM = Claim(
    id="2.10",
    kind="training",
    en="Batch normalization needs near-identical batches: shuffle the data, and enlarge the batch.",
    zh="BN 要求各批近似同分布：应打乱数据，并尽可能调大批量。",
    source="002, section BN",
    protocol="Dense networks of 3 layers with batch normalization, SGD with momentum 0.9, rate 0.02 × batch/64, equal "
    "epochs; final test accuracy, shuffled less sorted by class, and batch 64 less batch 4, paired by seed.",
    decision=Decision(0.03, 0.0, "accuracy", "3 points are a difference that a user sees"),
    sizes={"quick": {"seeds": 8, "epochs": 4}, "full": {"seeds": 10, "epochs": 40}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS213", "NS102"),
)
