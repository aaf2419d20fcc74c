"""1.4: without scale and shift, batch normalization keeps sigmoid in its near-linear region, and expressive power is
lost.

How linear a function is on what it is given: the share of its output's variance that the best straight line explains.
On a standard normal input that is a number of the function alone. Whether the network loses by it is a training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import accuracy_by, told
from normscope.claims.decision import Decision
from normscope.claims.interval import exact, paired
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Curves
from normscope.terms.verdict import Effect

FUNCTIONS = ("sigmoid", "tanh", "relu")
POINTS = 20_001


def cases(seeds: int, epochs: int) -> list[Case]:
    """Each nonlinearity with and without scale and shift."""
    return [
        {"activation": name, "affine": affine, "epochs": epochs, "seed": seed}
        for name in FUNCTIONS
        for affine in (True, False)
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The curve of one training, and what a line explains of the function on a standard normal input."""
    share = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    x = torch.special.ndtri(share)
    y = getattr(F, case["activation"])(x)
    explained = torch.corrcoef(torch.stack([x, y]))[0, 1].square().item()
    _, curve = bench.train(
        lambda: mlp(
            bench.images.x[0].numel(),
            depth=4,
            width=64,
            activation=case["activation"],
            norm="BatchNorm",
            affine=case["affine"],
        ),
        seed=case["seed"],
        rate=0.1,
        epochs=case["epochs"],
    )
    return {**told(curve), "explained": explained}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """What is explained beyond 90%, and what accuracy is lost without scale and shift, beyond one point."""
    effects = {}
    for name in FUNCTIONS:
        rows = outcomes.where(activation=name)
        effects[f"{name} is near-linear"] = exact(rows[0]["explained"] - 0.9, "share")
        pairs = rows.pairs("final", {"affine": True}, {"affine": False})
        effects[f"{name}: the network loses by it"] = paired([one - other - 0.01 for one, other in pairs], "accuracy")
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """Accuracy of each arm."""
    return accuracy_by(
        outcomes, "activation", "affine", title="Accuracy with and without scale and shift, mean of seeds."
    )


CLAIM = Claim(
    id="1.4",
    kind="training",
    en="Without scale and shift, batch normalization keeps a sigmoid in its near-linear region and the network "
    "loses expressive power.",
    zh="若只做标准化而没有 scale 和 shift，sigmoid 近似线性，网络表达能力下降。",
    source="001, section 2",
    protocol="The share of variance that a line explains of each function on a standard normal input, in float64, less "
    "0.9; and dense networks of 4 layers, SGD with rate 0.1, momentum 0.9, batch 64, final test accuracy with "
    "less without scale and shift, less one point, paired by seed.",
    decision=Decision(
        0.0, 0.0, "share beyond 0.9, accuracy beyond one point", "90% linear is near-linear; a point is a loss"
    ),
    sizes={"quick": {"seeds": 5, "epochs": 5}, "full": {"seeds": 10, "epochs": 40}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS111"),
)
