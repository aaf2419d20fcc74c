"""The statistics that a norm takes from a batch are mostly chance.

## What it finds
Norms over the batch whose mean of a channel varies from batch to batch by more than a third of the channel's own
deviation, through the second half of the run. This counts what a batch really tells, not its size: positions of one
image are alike, and so are samples of one video.

## Why it hurts
Each sample is normalized by its chance neighbours. A little of this noise regularizes; where it is as large as the
signal, gradients point elsewhere from batch to batch, and the running averages describe no batch at all.

## Evidence
The deviation of a batch's mean from that of the fixed batch at the same parameters, in deviations of the channel.

## Prescription
Replace batch normalization by a normalization of each sample; use larger batches; synchronize over devices.

## When to ignore
When the noise is wanted, as in ghost batch normalization with large batches elsewhere.

## References
Wu & He 2018, *Group Normalization*, table 2. Ioffe 2017, *Batch Renormalization*, section 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.diagnose.track import PERSISTENCE
from normscope.terms.finding import Finding

NOISY = Threshold(
    0.35, "1/√8: at 8 images a worker batch normalization begins to lose accuracy (Wu & He 2018, table 2)", "deviations"
)
HARMFUL = Threshold(0.5, "1/√4: at 4 images a worker it loses 3 points (Wu & He 2018, table 2)", "deviations")


def check(case: Case) -> Iterator[Finding]:
    """One finding with every norm whose batches tell it too little."""
    tracks = {norm: case.scalar(norm, "batch_stat_noise").late() for norm in case.norms}
    noise = {norm: float(np.median(track.values)) for norm, track in tracks.items() if len(track) >= PERSISTENCE}
    worst = sorted((norm for norm in noise if noise[norm] > NOISY.value), key=lambda norm: -noise[norm])
    if not worst:
        return
    value, track = noise[worst[0]], tracks[worst[0]]
    harmful = value > HARMFUL.value
    threshold = HARMFUL if harmful else NOISY
    yield RULE.finding(
        tuple(dict.fromkeys(norm.path for norm in worst)),
        f"The mean of a channel of `{worst[0].place}` varies by {value:.2f} of its deviation from batch to batch, as "
        f"over {1 / value**2:.0f} independent samples; {len(worst)} of {len(noise)} norms are above {NOISY.value}.",
        threshold.evidence("batch_stat_noise", value, track.steps, [(norm.key, noise[norm]) for norm in worst]),
        severity="warning" if harmful else "note",
        since_step=int(track.steps[0]),
        prescriptions=[
            remedies.without_batch(case),
            remedies.advice("use a larger batch, or `nn.SyncBatchNorm` where several devices share it"),
        ],
    )


def _normed(norm: type[nn.Module] = nn.BatchNorm1d, width: int = 32) -> nn.Module:
    layers = [layer for _ in range(2) for layer in (nn.Linear(width, width, bias=False), norm(width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 8))


SICK = (Scene(_normed, ("1",), batch=3, optimizer=sgd(0.01), steps=60),)
HEALTHY = (Scene(_normed, steps=60), Scene(partial(_normed, nn.LayerNorm), batch=3, optimizer=sgd(0.01), steps=60))

RULE = Rule(
    "NS304",
    "noisy_batch_statistics",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"noisy": NOISY, "harmful": HARMFUL},
    causes=(
        "unrelated_targets",
        "train_eval_gap",
        "stale_running_stats",
        "drifting_distribution",
        "rate_too_high",
        "growing_weights",
    ),
    sick=SICK,
    healthy=HEALTHY,
)
