"""4.1: batch normalization loses about ten points from batch size 32 to 2; a batch of one is impossible.

Each norm is trained at each batch size with the rate in proportion to it and an equal number of epochs; each is
compared with itself at batch 32, so that what small batches do to SGD itself is seen in the other norms.
"""

from __future__ import annotations

from typing import Any

import torch

from normscope import nn
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import exact, paired
from normscope.claims.models import vgg
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Column, Profile
from normscope.terms.errors import ShapeError
from normscope.terms.verdict import Effect

BATCHES = (2, 4, 8, 32)
ARMS = ("BatchNorm", "BatchRenorm", "GroupNorm", "GroupNorm + WS")


def cases(seeds: int, epochs: int, samples: int) -> list[Case]:
    """Every norm at every batch size."""
    return [
        {"arm": arm, "batch": batch, "epochs": epochs, "samples": samples, "seed": seed}
        for arm in ARMS
        for batch in BATCHES
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The accuracy that the training ends with, and whether a dense batch of one is refused."""
    split = bench.images.first(case["samples"])
    norm, _, standardized = case["arm"].partition(" + ")
    _, curve = bench.train(
        lambda: vgg(split.x.shape[1], depth=3, width=8, norm=norm, standardized=bool(standardized)),
        seed=case["seed"],
        rate=0.04 * case["batch"] / 32,
        epochs=case["epochs"],
        batch=case["batch"],
        split=split,
    )
    try:
        nn.BatchNorm1d(4)(torch.ones(1, 4))
        refused = False
    except ShapeError:
        refused = True
    return {"final": curve.final, "refused": refused}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """What batch normalization loses from 32 to each smaller batch, more than the others do."""
    effects = {}
    lost = {
        (arm, batch): [
            large - small for large, small in outcomes.where(arm=arm).pairs("final", {"batch": 32}, {"batch": batch})
        ]
        for arm in ARMS
        for batch in BATCHES[:-1]
    }
    for batch in BATCHES[:-1]:
        effects[f"BatchNorm, batch {batch}"] = paired(lost["BatchNorm", batch], "accuracy lost")
        beyond = [one - other for one, other in zip(lost["BatchNorm", batch], lost["GroupNorm", batch])]
        effects[f"BatchNorm beyond GroupNorm, batch {batch}"] = paired(beyond, "accuracy lost")
    refused = all(outcomes.where(arm="BatchNorm").column("refused"))
    effects["a dense batch of one is refused"] = exact(1.0 if refused else 0.0)
    return effects


def draw(outcomes: Outcomes) -> Profile:
    """Accuracy over the batch size."""

    def mean(arm: str, batch: int) -> float:
        ends = outcomes.where(arm=arm, batch=batch).column("final")
        return sum(ends) / len(ends)

    return Profile(
        title="Accuracy at the end of the training over the batch size, mean of seeds.",
        places=tuple(f"batch {batch}" for batch in BATCHES),
        roles=("",) * len(BATCHES),
        x=Axis("accuracy on the test split", share=True),
        columns=tuple(Column(arm, tuple(mean(arm, batch) for batch in BATCHES)) for arm in ARMS),
    )


CLAIM = Claim(
    id="4.1",
    kind="training",
    en="Batch normalization's error rises as the batch shrinks (32 to 2), by about ten points; a batch of one is "
    "impossible for a dense layer.",
    zh="批量由 32 减到 2 时 BN 的误差上升约十个百分点；批量为 1 时全连接层的 BN 无法工作。",
    source="004, section on small batch sizes",
    protocol="Convolutional networks of 3 layers, SGD with momentum 0.9, rate 0.04 × batch/32, equal epochs; final "
    "test accuracy at batch 32 less that at the smaller batch, paired by seed, and the same less what "
    "GroupNorm loses.",
    decision=Decision(0.05, 0.02, "accuracy lost", "5 points are of the order of ten, 2 are not"),
    sizes={"quick": {"seeds": 5, "epochs": 3, "samples": 640}, "full": {"seeds": 5, "epochs": 40, "samples": 1000000}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
)
