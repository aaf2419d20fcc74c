"""3.1: batch normalization trains fast and stably; weight normalization is faster than none and less stable than BN.

A grid of rates. Fast is the mean accuracy over the training at the best rate; stable is the mean over all rates.
"""

from __future__ import annotations

from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import ACCURACY, averages
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Profile
from normscope.terms.verdict import Effect

NORMS = ("none", "weight_norm", "BatchNorm")
RATES = (0.001, 0.01, 0.1, 1.0)


def cases(seeds: int, epochs: int) -> list[Case]:
    """Each norm at each rate."""
    return [
        {"norm": norm, "rate": rate, "epochs": epochs, "seed": seed}
        for norm in NORMS
        for rate in RATES
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The mean accuracy over the epochs; that of guessing where the training broke off."""
    inputs = bench.images.x[0].numel()
    _, curve = bench.train(
        lambda: mlp(inputs, depth=6, width=64, norm=case["norm"]),
        seed=case["seed"],
        rate=case["rate"],
        epochs=case["epochs"],
    )
    return {"area": 0.1 if curve.diverged else sum(curve.accuracy[1:]) / case["epochs"], "diverged": curve.diverged}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Speed at the best rate, and the mean over all rates, of one norm less another."""
    best = {norm: _best(outcomes.where(norm=norm)) for norm in NORMS}
    mean = {norm: _mean(outcomes.where(norm=norm)) for norm in NORMS}

    def won(of: dict[str, list[float]], one: str, other: str) -> Effect:
        return paired([a - b for a, b in zip(of[one], of[other])], "accuracy")

    return {
        "BatchNorm is faster than none": won(best, "BatchNorm", "none"),
        "BatchNorm is more stable than none": won(mean, "BatchNorm", "none"),
        "weight norm is faster than none": won(best, "weight_norm", "none"),
        "weight norm is less stable than BatchNorm": won(mean, "BatchNorm", "weight_norm"),
    }


def _best(rows: Outcomes) -> list[float]:
    return max((rows.where(rate=rate).column("area") for rate in RATES), key=sum)


def _mean(rows: Outcomes) -> list[float]:
    seeds = (rows.where(seed=seed).column("area") for seed in rows.levels("seed"))
    return [sum(each) / len(each) for each in seeds]


def draw(outcomes: Outcomes) -> Profile:
    """Accuracy over the rate."""
    title = "Accuracy over the training at each rate, mean of seeds and epochs."
    return averages(outcomes, "area", "norm", "rate", title=title, axis=ACCURACY)


CLAIM = Claim(
    id="3.1",
    kind="training",
    en="Batch normalization gives fast and stable training; weight normalization is faster than none, and less "
    "stable than batch normalization.",
    zh="BN 提供稳定且加速的训练；权重归一化也能加快训练，但稳定性明显不如 BN。",
    source="003, sections on batch and weight normalization",
    protocol="Dense ReLU networks of 6 layers, SGD with momentum 0.9 and batch 64 at rates 0.001, 0.01, 0.1 and 1; "
    "test accuracy as the mean over epochs, at each arm's best rate (speed) and over all rates (stability), "
    "paired by seed.",
    decision=Decision(0.02, 0.0, "accuracy over the training", "2 points are a difference that a user sees"),
    sizes={"quick": {"seeds": 10, "epochs": 5}, "full": {"seeds": 10, "epochs": 40}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("weight_norm", "BatchNorm"),
)
