"""The training batches differ from one another by more than chance: they are no independent samples.

## What it finds
Runs whose batches, as the network reads them, lie more than four times as far from the fixed batch (in squares) as
independent samples of the same scatter would, and by more than a quarter of a deviation: a loader that yields its data
in the order of the labels, or file by file. And runs in which the fixed batch is forgotten: its loss rises above where
it started, while that of a quarter of the training batches falls to less than half.

## Why it hurts
Each step undoes what the one before has learned of other data. The loss of training looks well, because it is asked of
the batches that were learned last, and the network ends as an expert of the last ones.

## Evidence
The distance between the means of training batch and fixed batch over what independent samples would give; the loss of
the fixed batch over its first value.

## Prescription
Shuffle: `DataLoader(..., shuffle=True)`; with an iterable data set a shuffle buffer larger than the longest stretch of
one kind; with several sources, draw each batch from all of them.

## When to ignore
When the fixed batch is of other data than the training on purpose; and in continual learning.

## References
Bottou 2012, *Stochastic gradient descent tricks*, section 3: "randomly shuffle the training examples".
Ioffe & Szegedy 2015, *Batch Normalization*, section 4.2.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, clusters, sgd
from normscope.diagnose.track import PERSISTENCE, Track
from normscope.terms.finding import Finding
from normscope.terms.site import Site

FORGOTTEN = Threshold(
    1.2,
    "chosen: above 1 the training has made the batch worse than the untrained network did; the probe is always the "
    "same, so a fifth is no noise of sampling",
    "ratio",
)
LEARNED = Threshold(0.5, "chosen: half of the loss, what counts as thriving in every rule here", "share")
SPARED = Threshold(0.9, "chosen: where a tenth of the fixed batch's loss is left, the order has cost little", "share")
EXCESS = Threshold(
    4.0,
    "chosen: independent samples give 1, with a deviation of √(2/C) over C features (χ²): four is three deviations off "
    "for two features, and is asked of the median over half a run",
    "ratio",
)
FELT = Threshold(0.25, "chosen: 1/√16, by which the mean of 16 independent samples is off anyway", "deviations")


def check(case: Case) -> Iterator[Finding]:
    """One finding for the run."""
    found = _forgotten(case) or _apart(case)
    if found is None:
        return
    words, threshold, value, track, forgotten = found
    yield RULE.finding(
        [case.sites[0].path if case.sites else ""],
        words,
        threshold.evidence("probe_loss" if forgotten else "batch_stat_excess", value, track.steps),
        severity="error" if forgotten else "note" if _learned(case) else "warning",
        since_step=int(track.late().steps[0]),
        prescriptions=[
            remedies.advice(
                "shuffle the data: `DataLoader(dataset, batch_size, shuffle=True)`", "batches are then alike"
            ),
            remedies.advice("draw every batch from all sources and classes, in the shares of the whole data set"),
        ],
    )


def _learned(case: Case) -> bool:
    """Whether the fixed batch is learned: the loss of training knows its own batches alone."""
    probe = case.scalar(None, "probe_loss")
    return case.thrives if len(probe) < 6 else (probe.fallen or 0.0) > SPARED.value


def _forgotten(case: Case) -> tuple[str, Threshold, float, Track, bool] | None:
    probe = case.scalar(None, "probe_loss")
    if len(probe) < 4 or len(case.loss) < 12 or not probe.values[0] > 0:
        return None
    late, start = case.loss.late().values, float(np.median(case.loss.values[:3]))
    learned = 1 - float(np.quantile(late, 0.25)) / start if start > 0 else 0.0
    value = float(np.median(probe.late().values)) / float(probe.values[0])
    if not (learned > LEARNED.value and value > FORGOTTEN.value):
        return None
    words = (
        f"The loss of the fixed batch is {value:.2g} times what it was at the start, through the second half of the "
        f"run, while a quarter of the training batches have lost {learned:.0%} and more: what one batch teaches the "
        "next ones undo."
    )
    return words, FORGOTTEN, value, probe, True


def _apart(case: Case) -> tuple[str, Threshold, float, Track, bool] | None:
    excess, noise = (case.scalar(Site(""), name) for name in ("batch_stat_excess", "batch_stat_noise"))
    if len(excess.late()) < PERSISTENCE or not float(np.median(noise.late().values)) > FELT.value:
        return None
    value = float(np.median(excess.late().values))
    words = (
        f"The inputs of two batches lie {value:.0f} times as far apart as independent samples would (in squares): the "
        "batches are of different kinds."
    )
    return (words, EXCESS, value, excess, False) if value > EXCESS.value else None


def _network(norm: bool = False) -> nn.Module:
    middle = [nn.BatchNorm1d(32)] if norm else []
    return nn.Sequential(nn.Linear(32, 32), *middle, nn.ReLU(), nn.Linear(32, 8))


SICK = (Scene(_network, data=partial(clusters, 2048), optimizer=sgd(0.2, 0.0), steps=80, sorted=True),)
HEALTHY = (Scene(_network, steps=64), Scene(partial(_network, True), steps=64))

RULE = Rule(
    "NS213",
    "unlike_batches",
    "error",
    "record",
    check,
    __doc__,
    thresholds={"forgotten": FORGOTTEN, "learned": LEARNED, "spared": SPARED, "excess": EXCESS, "felt": FELT},
    causes=(
        *("stale_running_stats", "train_eval_gap", "mixed_domains", "drifting_distribution", "noisy_batch_statistics"),
        "rate_too_high",
    ),
    sick=SICK,
    healthy=HEALTHY,
)
