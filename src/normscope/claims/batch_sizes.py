"""The sweep over batch sizes that several claims and a figure look at: each norm at each size, trained once.

Every training makes an equal number of epochs with the rate in proportion to the batch, so that batch size 1 makes 32
times the steps at a 32nd of the rate.
"""

from __future__ import annotations

from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.models import vgg
from normscope.claims.outcomes import Case

BATCHES = (1, 2, 4, 8, 32)
ARMS = ("BatchNorm", "BatchRenorm", "GroupNorm", "GroupNorm + WS", "BatchChannelNorm + WS")
SIZES = {
    "quick": {"seeds": 7, "epochs": 5, "samples": 960},
    "full": {"seeds": 10, "epochs": 40, "samples": 1_000_000},
}
PROTOCOL = "Convolutional networks of 3 layers, SGD with momentum 0.9, rate 0.04 × batch/32, equal epochs"
LARGE = {"arm": "BatchNorm", "batch": 32}


def cases(seeds: int, epochs: int, samples: int) -> list[Case]:
    """Every norm at every batch size; the batch's own norms from 2 images on."""
    return [
        {"arm": arm, "batch": batch, "epochs": epochs, "samples": samples, "seed": seed}
        for arm in ARMS
        for batch in BATCHES
        for seed in range(seeds)
        if batch > 1 or arm not in ARMS[:2]
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The accuracy that the training ends with."""
    split = bench.images.first(case["samples"])
    _, curve = bench.train(
        lambda: vgg(split.x.shape[1], depth=3, width=8, norm=case["arm"]),
        seed=case["seed"],
        rate=0.04 * case["batch"] / 32,
        epochs=case["epochs"],
        batch=case["batch"],
        split=split,
    )
    return {"final": curve.final}
