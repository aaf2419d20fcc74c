"""4.6: batch normalization converges faster, depends less on initialization and needs less data.

The part that no other claim decides: the accuracy over the share of the training data, with an equal number of steps,
so that less data is not less training.
"""

from __future__ import annotations

from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import ACCURACY, averages, gained
from normscope.claims.decision import Decision
from normscope.claims.models import vgg
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Profile
from normscope.terms.verdict import Effect

SAMPLES = (80, 240, 720)
BATCH = 40


def cases(seeds: int, steps: int) -> list[Case]:
    """Each amount of data, with and without the norm."""
    return [
        {"samples": samples, "norm": norm, "steps": steps, "seed": seed}
        for samples in SAMPLES
        for norm in ("none", "BatchNorm")
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The accuracy that the training ends with."""
    split = bench.images.first(case["samples"])
    _, curve = bench.train(
        lambda: vgg(split.x.shape[1], depth=4, width=8, norm=case["norm"]),
        seed=case["seed"],
        rate=0.03,
        epochs=case["steps"] * BATCH // case["samples"],
        batch=BATCH,
        split=split,
    )
    return {"final": curve.final}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """What the norm wins at each amount of data."""
    return gained(outcomes, "final", {"norm": "BatchNorm"}, {"norm": "none"}, by="samples", label="{} samples")


def draw(outcomes: Outcomes) -> Profile:
    """Accuracy over the amount of data."""
    title = "Accuracy after an equal number of steps over the number of training samples, mean of seeds."
    return averages(outcomes, "final", "norm", "samples", title=title, axis=ACCURACY)


CLAIM = Claim(
    id="4.6",
    kind="training",
    en="Batch normalization converges faster, depends less on initialization, and needs less data to generalize.",
    zh="BN 收敛更快，降低初始权重的重要性，泛化所需的数据更少。",
    source="004, section on benefits",
    protocol="Convolutional networks of 4 layers on 80, 240 and 720 training images, an equal number of steps of SGD "
    "with rate 0.03, momentum 0.9 and batch 40; final test accuracy with less without, paired by seed. Speed "
    "and initialization are decided by 0.11 and 0.13.",
    decision=Decision(0.02, 0.0, "accuracy gained", "2 points are a difference that a user sees"),
    sizes={"quick": {"seeds": 20, "steps": 90}, "full": {"seeds": 20, "steps": 2000}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm",),
)
