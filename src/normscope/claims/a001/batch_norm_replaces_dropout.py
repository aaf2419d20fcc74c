"""1.6: batch normalization regularizes: without Dropout the result is as good.

A wide network on few images, so that there is something to regularize: plain, with Dropout, with batch normalization,
and with both.
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

SAMPLES = 256


def cases(seeds: int, epochs: int) -> list[Case]:
    """With and without the norm, with and without Dropout."""
    return [
        {"norm": norm, "dropout": dropout, "epochs": epochs, "seed": seed}
        for norm in ("none", "BatchNorm")
        for dropout in (0.0, 0.3)
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The curve of one training on few images."""
    inputs = bench.images.x[0].numel()
    _, curve = bench.train(
        lambda: mlp(inputs, depth=3, width=128, norm=case["norm"], dropout=case["dropout"]),
        seed=case["seed"],
        rate=0.02,
        epochs=case["epochs"],
        batch=32,
        split=bench.images.first(SAMPLES),
    )
    return told(curve)


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The test accuracy of batch normalization alone against Dropout alone, against both, and against neither."""
    alone = {"norm": "BatchNorm", "dropout": 0.0}
    others = {
        "as good as Dropout": {"norm": "none", "dropout": 0.3},
        "as good as both": {"norm": "BatchNorm", "dropout": 0.3},
        "no worse than neither": {"norm": "none", "dropout": 0.0},
    }
    return {
        name: paired([one - other for one, other in outcomes.pairs("final", alone, against)], "accuracy")
        for name, against in others.items()
    }


def draw(outcomes: Outcomes) -> Curves:
    """Accuracy of each arm."""
    return accuracy_by(
        outcomes, "norm", "dropout", title=f"Accuracy after training on {SAMPLES} images, mean of seeds."
    )


CLAIM = Claim(
    id="1.6",
    kind="training",
    en="Batch normalization regularizes: without Dropout the result is as good.",
    zh="BN 类似于 Dropout 的正则化作用，不用 Dropout 也能达到相当的效果。",
    source="001, section 5, second benefit",
    protocol="Dense networks of 3 layers of width 128 on 256 images, SGD with rate 0.02, momentum 0.9, batch 32; final "
    "test accuracy of batch normalization alone less that of Dropout 0.3, of both, and of neither, paired by "
    "seed.",
    decision=Decision(-0.01, -0.01, "accuracy", "within one point is as good"),
    sizes={"quick": {"seeds": 15, "epochs": 20}, "full": {"seeds": 20, "epochs": 200}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS103"),
)
