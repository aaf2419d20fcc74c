"""3.6: the guide: a large batch and no recurrence → BatchNorm; a small batch, or an LSTM → GroupNorm with WS.

Convolutional networks at batch 64 and at batch 2, and an LSTM that reads images row by row; in the LSTM the group
is the whole layer (layer normalization) and each weight matrix is standardized. At equal rates; with convolutions and
large batches each arm at its better one of two.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from normscope import nn as norms
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import ACCURACY, averages
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import Recurrent, vgg
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Profile
from normscope.terms.verdict import Effect

ARMS = ("BatchNorm", "GroupNorm + WS")
SITUATIONS = {  # batch, rates, and the arm that the guide picks
    "batch 64, convolutions": (64, (0.03, 0.1), "BatchNorm"),
    "batch 2, convolutions": (2, (0.002,), "GroupNorm + WS"),
    "LSTM, batch 64": (64, (0.2,), "GroupNorm + WS"),
}


def cases(seeds: int, epochs: int, samples: int) -> list[Case]:
    """Both arms in each situation at its rates."""
    return [
        {"situation": name, "arm": arm, "rate": rate, "epochs": epochs, "samples": samples, "seed": seed}
        for name, (_, rates, _) in SITUATIONS.items()
        for arm in ARMS
        for rate in rates
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The accuracy that the training ends with."""
    recurrent = case["situation"].startswith("LSTM")
    split = (bench.images.rows if recurrent else bench.images).first(case["samples"])
    width = split.x.shape[2 if recurrent else 1]
    _, curve = bench.train(
        (lambda: _lstm(width, case["arm"])) if recurrent else (lambda: vgg(width, depth=3, width=8, norm=case["arm"])),
        seed=case["seed"],
        rate=case["rate"],
        epochs=case["epochs"],
        batch=SITUATIONS[case["situation"]][0],
        split=split,
    )
    return {"final": curve.final}


def _lstm(inputs: int, arm: str) -> nn.Module:
    model = Recurrent("LSTM", inputs, 32, norm="batch" if arm == "BatchNorm" else "layer")
    if arm.endswith("WS"):
        for name in ("weight_ih_l0", "weight_hh_l0"):
            norms.weight_standardization(model.layer, name)
    return model


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """What following the guide wins, each arm at its better rate."""
    effects = {}
    for name, (_, rates, picked) in SITUATIONS.items():
        ends = {
            arm: max((outcomes.where(situation=name, arm=arm, rate=rate).column("final") for rate in rates), key=sum)
            for arm in ARMS
        }
        (other,) = set(ARMS) - {picked}
        won = [one - another for one, another in zip(ends[picked], ends[other])]
        effects[f"{name}: {picked}"] = paired(won, "accuracy")
    return effects


def draw(outcomes: Outcomes) -> Profile:
    """Accuracy in each situation, mean over rates and seeds."""
    title = "Accuracy at the end of the training in each situation, mean of rates and seeds."
    return averages(outcomes, "final", "arm", "situation", title=title, axis=ACCURACY)


CLAIM = Claim(
    id="3.6",
    kind="training",
    en="The guide: with a large batch and no recurrence take batch normalization; with a small batch or an LSTM take "
    "group normalization with weight standardization.",
    zh="选择指南：大批量且无循环连接用 BN；小批量或 LSTM 用组归一化加权重标准化。",
    source="003, summary before the references",
    protocol="Convolutional networks of 3 layers at batch 64 and at batch 2, and an LSTM of 32 units that reads images "
    "row by row (batch norm of each time step inside, or layer norm with standardized weights), SGD with momentum "
    "0.9, equal epochs; final test accuracy of the arm that the guide picks less that of the other, each at its "
    "better rate where there are two, paired by seed.",
    decision=Decision(0.005, -0.005, "accuracy", "half a point is the least that seven seeds can show"),
    sizes={
        "quick": {"seeds": 7, "epochs": 4, "samples": 800},
        "full": {"seeds": 10, "epochs": 40, "samples": 1_000_000},
    },
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "GroupNorm", "weight_standardization", "NS102", "NS311"),
)
