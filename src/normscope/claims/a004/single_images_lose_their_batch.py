"""4.3: trained on large batches, used on one image at a time, batch normalization does not work well.

A trained network is used on single test images in three ways: with its kept statistics (evaluation mode), with the
statistics of the single image (training mode, the article's reading), and with population statistics that are measured
again after the training (recalibrated). All against whole test batches in training mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from normscope.claims.bench import Bench, accuracy
from normscope.claims.claim import Claim
from normscope.claims.curves import ACCURACY
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import vgg
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Column, Profile
from normscope.terms.verdict import Effect
from normscope.treat.treatments.recalibrate import recalibrate

WAYS = ("kept", "its own", "recalibrated")


def cases(seeds: int) -> list[Case]:
    """A short and a longer training, at a large and a small batch."""
    return [
        {"batch": batch, "epochs": epochs, "seed": seed}
        for batch in (64, 8)
        for epochs in (1, 4)
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The accuracy of each way of use."""
    images = bench.images
    model, curve = bench.train(
        lambda: vgg(images.x.shape[1], depth=3, width=8, norm="BatchNorm"),
        seed=case["seed"],
        rate=0.04 * case["batch"] / 64,
        epochs=case["epochs"],
        batch=case["batch"],
    )
    model.train()
    together, alone = _right(model, images.test_x, images.test_y, 64), _right(model, images.test_x, images.test_y, 1)
    recalibrate(model, [images.x[at : at + 64] for at in range(0, len(images.x) - 63, 64)])
    return {"batches": together, "kept": curve.final, "its own": alone, "recalibrated": accuracy(model, images)}


@torch.no_grad()
def _right(model: nn.Module, x: torch.Tensor, y: torch.Tensor, size: int) -> float:
    """The accuracy in training mode, in batches of `size`; the kept statistics are left as they are."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    right = [(model(part).argmax(1) == wanted).sum() for part, wanted in zip(x.split(size), y.split(size))]
    for name, buffer in model.named_buffers():
        buffer.copy_(kept[name])
    return torch.stack(right).sum().item() / len(y)


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The accuracy that single images lose against whole batches, by how their statistics are had."""
    effects = {}
    for batch in outcomes.levels("batch"):
        for epochs in outcomes.levels("epochs"):
            rows = outcomes.where(batch=batch, epochs=epochs)
            for way in WAYS:
                lost = [row["batches"] - row[way] for row in rows]
                effects[f"{way} statistics, batch {batch}, {epochs} epochs"] = paired(lost, "accuracy")
    return effects


def draw(outcomes: Outcomes) -> Profile:
    """The accuracy of each way of use."""
    arms = [(batch, epochs) for batch in outcomes.levels("batch") for epochs in outcomes.levels("epochs")]

    def mean(way: str, batch: int, epochs: int) -> float:
        ends = outcomes.where(batch=batch, epochs=epochs).column(way)
        return sum(ends) / len(ends)

    return Profile(
        title="The accuracy on test images by where the statistics come from, mean of seeds.",
        places=tuple(f"batch {batch}, {epochs} epochs" for batch, epochs in arms),
        roles=tuple(f"{arm}" for arm in arms),
        x=ACCURACY,
        columns=tuple(Column(way, tuple(mean(way, *arm) for arm in arms)) for way in ("batches", *WAYS)),
    )


CLAIM = Claim(
    id="4.3",
    kind="training",
    en="Trained on large batches and used on one image at a time, batch normalization works less well.",
    zh="用大批量训练、推理时批量为 1，归一化层无法有效工作。",
    source="004, section on test and inference",
    protocol="Convolutional networks of 3 layers, SGD with momentum 0.9; test accuracy of batches of 64 in training "
    "mode less that of single images, with kept statistics, with each image's own, and with statistics "
    "recalibrated on the training split, paired by seed.",
    decision=Decision(0.02, 0.01, "accuracy lost", "2 points are a loss that a user sees"),
    sizes={"quick": {"seeds": 12}, "full": {"seeds": 20}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS302", "NS301"),
)
