"""3.2: layer normalization removes the dependence on the batch, and works in recurrent networks.

Exactly: the output for a sample is the same alone and in any company. In training, with and without layer normalization
inside: an LSTM and a GRU that read images row by row, an LSTM that reads them pixel by pixel, and one that must keep
the sign of its first input over a long lag.
"""

from __future__ import annotations

from typing import Any

import torch

from normscope import nn
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import accuracy_by, told
from normscope.claims.data import far_apart
from normscope.claims.decision import Decision
from normscope.claims.exact import TOLERANCE
from normscope.claims.interval import exact, paired
from normscope.claims.models import Recurrent
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Curves
from normscope.terms.verdict import Effect

LAG = 40
TASKS = ("LSTM, rows", "GRU, rows", "LSTM, pixels", "LSTM, long lag")


def cases(seeds: int, epochs: int) -> list[Case]:
    """Each cell and task with and without the norm."""
    return [
        {"task": task, "norm": norm, "epochs": epochs, "seed": seed}
        for task in TASKS
        for norm in ("none", "layer")
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The curve of one training; how far a sample's output alone is from that in company."""
    cell, _, reading = case["task"].partition(", ")
    split = far_apart(512, LAG).to(bench.device) if reading == "long lag" else getattr(bench.images, reading)
    norm = None if case["norm"] == "none" else case["norm"]
    _, curve = bench.train(
        lambda: Recurrent(cell, split.x.shape[2], 32, norm=norm),
        seed=case["seed"],
        rate=0.1,
        epochs=case["epochs"],
        split=split,
    )
    layer = nn.LayerNorm(16, dtype=torch.float64)
    x = torch.randn(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(case["seed"]))
    apart = (layer(x)[:1] - layer(x[:1])).abs().max().item()
    return {**told(curve), "area": sum(curve.accuracy[1:]) / case["epochs"], "apart": apart}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """What the norm wins over the training and in the end; and independence, counted as 1 where it is exact."""
    apart = max(outcomes.column("apart"))
    effects = {"no dependence on the batch": exact(1.0 if apart < TOLERANCE else -1.0)}
    for task in TASKS:
        for value, words in (("area", "over the training"), ("final", "in the end")):
            pairs = outcomes.where(task=task).pairs(value, {"norm": "layer"}, {"norm": "none"})
            effects[f"{task}, {words}"] = paired([one - other for one, other in pairs], "accuracy")
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """Accuracy of each arm."""
    return accuracy_by(outcomes, "task", "norm", title="Accuracy of recurrent networks, mean of seeds.")


CLAIM = Claim(
    id="3.2",
    kind="training",
    en="Layer normalization removes the dependence on the batch, and works in recurrent networks.",
    zh="层归一化消除了对批次的依赖，也更容易用于 RNN。",
    source="003, section on layer normalization",
    protocol="LSTM and GRU of 32 units reading images row by row, LSTM pixel by pixel and on a generated task whose "
    "class is the sign of the first of 40 values; SGD with rate 0.1, momentum 0.9 and batch 64; test "
    "accuracy with less without layer normalization inside, as the mean over epochs and at the end, paired by "
    "seed. A sample alone against the same in a batch of 8, in float64.",
    decision=Decision(0.0, -0.02, "accuracy won", "a norm that wins works; one that loses 2 points does not"),
    sizes={"quick": {"seeds": 5, "epochs": 5}, "full": {"seeds": 10, "epochs": 40}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("LayerNorm", "NS311"),
)
