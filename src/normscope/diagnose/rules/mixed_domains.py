"""A norm over the batch sees batches of different kinds, and averages their statistics.

## What it finds
Norms over the batch whose batches lie further apart than independent samples would: the squared distance of two batch
means is more than four times what the scatter of samples within the batches gives, and the means vary by more than a
quarter of a deviation. So it is with batches of one class, one domain, one camera or one video each.

## Why it hurts
In training each kind is normalized by its own statistics, and looks standardized. At inference all kinds are normalized
by the average of all, which fits none; and the network could learn the kind of a batch from its neighbours.

## Evidence
The squared distance between the means of the training batch and the fixed batch, over what independent samples of the
same scatter would give, at the same parameters.

## Prescription
Shuffle, and draw each batch from all kinds; where kinds must stay apart, give each its own normalization (domain-
specific batch norm), or normalize each sample by itself.

## When to ignore
When the fixed batch is of other data (other augmentation, a validation set) on purpose.

## References
Ioffe 2017, *Batch Renormalization*, section 4.3 (batches that are no independent samples).
Li et al. 2017, *Revisiting batch normalization for practical domain adaptation*; Chang et al. 2019, *Domain-specific
batch normalization*. Wu & Johnson 2021, *Rethinking "Batch" in BatchNorm*, section 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, clusters
from normscope.diagnose.track import PERSISTENCE
from normscope.terms.finding import Finding

EXCESS = Threshold(
    4.0,
    "chosen: independent samples give 1, with a deviation of √(2/C) over C channels (χ²): four is three deviations off "
    "for two channels, and is asked of the median over half a run",
    "ratio",
)
FELT = Threshold(
    0.25,
    "chosen: with large batches the ratio finds differences too small to matter; the mean of 16 independent samples "
    "is off by 1/√16 anyway",
    "deviations",
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with every norm whose batches are of different kinds."""
    excess: dict = {}
    for norm in case.norms:
        track, noise = (case.scalar(norm, name).late() for name in ("batch_stat_excess", "batch_stat_noise"))
        if len(track) >= PERSISTENCE and float(np.median(noise.values)) > FELT.value:
            excess[norm] = track
    value = {norm: float(np.median(track.values)) for norm, track in excess.items()}
    worst = sorted((norm for norm in value if value[norm] > EXCESS.value), key=lambda norm: -value[norm])
    if not worst:
        return
    track = excess[worst[0]]
    yield RULE.finding(
        tuple(dict.fromkeys(norm.path for norm in worst)),
        f"Batches of `{worst[0].place}` lie {value[worst[0]]:.0f} times as far apart (in squares) as independent "
        f"samples would, and so at {len(worst)} of {len(case.norms)} norms: they are of different kinds.",
        EXCESS.evidence("batch_stat_excess", value[worst[0]], track.steps, [(norm.key, value[norm]) for norm in worst]),
        since_step=int(track.steps[0]),
        prescriptions=[
            remedies.advice(
                "shuffle, and draw each batch from all classes and sources: `DataLoader(..., shuffle=True)`"
            ),
            remedies.without_batch(case),
            remedies.advice("give each domain a batch normalization of its own, chosen by the domain of the batch"),
        ],
    )


def _normed(width: int = 32) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 8))


SICK = (Scene(_normed, ("1",), data=partial(clusters, 2048), steps=60, sorted=True),)
HEALTHY = (Scene(_normed, steps=60), Scene(_normed, steps=60, batch=64))

RULE = Rule(
    "NS305",
    "mixed_domains",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"excess": EXCESS, "felt": FELT},
    causes=("stale_running_stats", "train_eval_gap", "noisy_batch_statistics"),
    sick=SICK,
    healthy=HEALTHY,
)
