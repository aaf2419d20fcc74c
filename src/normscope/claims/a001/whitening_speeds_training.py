"""1.1: normalizing (whitening) the input speeds training; so does whitening hidden layers.

The same network on raw pixels, on standardized ones and on whitened ones; then with batch normalization and with
whitening inside. Each arm at its best rate, for raw pixels want a smaller one.
"""

from __future__ import annotations

from typing import Any

import torch

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import ACCURACY
from normscope.claims.data import Split
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Column, Profile
from normscope.terms.verdict import Effect

ARMS = {  # input, norm of the hidden layers
    "raw": ("raw", "none"),
    "standardized": ("standardized", "none"),
    "whitened": ("whitened", "none"),
    "BatchNorm inside": ("standardized", "BatchNorm"),
    "whitening inside": ("standardized", "IterNorm"),
}
RATES = (0.001, 0.01, 0.1)


def cases(seeds: int, epochs: int) -> list[Case]:
    """Each arm at each rate."""
    return [
        {"arm": arm, "rate": rate, "epochs": epochs, "seed": seed}
        for arm in ARMS
        for rate in RATES
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The mean accuracy over the epochs, which counts speed."""
    given, norm = ARMS[case["arm"]]
    split = _prepared(bench.images.flat, given)
    _, curve = bench.train(
        lambda: mlp(split.x.shape[1], depth=3, width=32, norm=norm),
        seed=case["seed"],
        rate=case["rate"],
        epochs=case["epochs"],
        batch=64,
        split=split,
    )
    return {"area": 0.1 if curve.diverged else sum(curve.accuracy[1:]) / case["epochs"]}


def _prepared(split: Split, given: str) -> Split:
    """Pixels in their own units (up to 16, all positive), each standardized, or all whitened by ZCA."""
    if given == "raw":
        low = split.x.min()
        return split.but(x=8 * (split.x - low), test_x=8 * (split.test_x - low))
    mean, deviation = split.x.mean(0), split.x.std(0) + 0.1
    x, test_x = (split.x - mean) / deviation, (split.test_x - mean) / deviation
    if given == "whitened":
        values, vectors = torch.linalg.eigh(x.T @ x / len(x))
        whitening = vectors @ torch.diag((values.clamp(min=0) + 0.1).rsqrt()) @ vectors.T
        x, test_x = x @ whitening, test_x @ whitening
    return split.but(x=x, test_x=test_x)


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The accuracy over the training that each step of normalization wins."""
    best = {arm: _best(outcomes.where(arm=arm)) for arm in ARMS}
    steps = {
        "standardized against raw input": ("standardized", "raw"),
        "whitened against raw input": ("whitened", "raw"),
        "BatchNorm inside against none": ("BatchNorm inside", "standardized"),
        "whitening inside against none": ("whitening inside", "standardized"),
    }
    return {
        name: paired([a - b for a, b in zip(best[one], best[other])], "accuracy")
        for name, (one, other) in steps.items()
    }


def _best(rows: Outcomes) -> list[float]:
    """The seeds at the best rate."""
    return max((rows.where(rate=rate).column("area") for rate in RATES), key=sum)


def draw(outcomes: Outcomes) -> Profile:
    """The accuracy over the training of each arm."""
    means = tuple(sum(best) / len(best) for best in (_best(outcomes.where(arm=arm)) for arm in ARMS))
    return Profile(
        title="Accuracy as the mean over epochs, each arm at its best rate, mean of seeds.",
        places=tuple(ARMS),
        roles=tuple(ARMS),
        x=ACCURACY,
        columns=(Column("accuracy", means),),
    )


CLAIM = Claim(
    id="1.1",
    kind="training",
    en="Normalizing or whitening the input speeds training, and so does whitening the hidden layers.",
    zh="对输入做归一化或白化能加快收敛，对隐层做白化亦然。",
    source="001, sections 0 and 1",
    protocol="Dense ReLU networks of 3 layers, SGD with momentum 0.9 and batch 64 at the best of the rates 0.001, 0.01 "
    "and 0.1: raw pixels (0 to about 16), each pixel standardized, or ZCA whitened; and with batch "
    "normalization or iterative whitening in the hidden layers. Test accuracy as the mean over epochs, paired "
    "by seed.",
    decision=Decision(0.01, 0.0, "accuracy over the training", "one point over the whole training is a gain in speed"),
    sizes={"quick": {"seeds": 12, "epochs": 4}, "full": {"seeds": 12, "epochs": 40}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("DecorrelatedBatchNorm", "IterNorm", "NS209"),
)
