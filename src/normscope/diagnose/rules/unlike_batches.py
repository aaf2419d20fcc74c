"""The training batches differ from one another by more than chance: they are no independent samples.

## What it finds
Runs whose batches, as the network reads them, lie more than four times as far from the fixed batch (in squares) as
independent samples of the same scatter would, and by more than a quarter of a deviation: a loader that yields its data
in the order of the labels, or file by file. Runs whose batches ask for one answer: the gradients of their samples, at
the last layer, add up to more than four times (in squares) what those of the fixed batch do at the same parameters. And
runs in which the fixed batch is forgotten: its loss rises above where it started, while that of a quarter of the
training batches falls to less than half.

## Why it hurts
Each step undoes what the one before has learned of other data. The loss of training looks well, because it is asked of
the batches that were learned last, and the network ends as an expert of the last ones.

## Evidence
The distance between the means of training batch and fixed batch over what independent samples would give. ‖Σδ‖²/Σ‖δ‖²
of the gradients δ of samples at the last layer, whose sum is the gradient of its bias: near 1 where they point all
ways, the number of samples where they point one way; of the training batch, over that of the fixed batch. The loss of
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
from normscope.stats.summary import Summary
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
SUM = Threshold(
    1.5,
    "Cauchy and Schwarz: gradients of N samples add up to N at most; chosen half above, beyond which they are those of "
    "several batches (`accumulated_gradient`)",
    "ratio",
)
FELT = Threshold(0.25, "chosen: 1/√16, by which the mean of 16 independent samples is off anyway", "deviations")


def check(case: Case) -> Iterator[Finding]:
    """One finding for the run."""
    found = _forgotten(case) or _one_way(case) or _apart(case)
    if found is None:
        return
    words, threshold, value, track, quantity = found
    yield RULE.finding(
        [case.sites[0].path if case.sites else ""],
        words,
        threshold.evidence(quantity, value, track.steps),
        severity="error" if quantity == "probe_loss" else "note" if _learned(case) else "warning",
        since_step=int((track.late() if quantity == "probe_loss" else track).steps[0]),
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


_Found = tuple[str, Threshold, float, Track, str]


def _forgotten(case: Case) -> _Found | None:
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
    return words, FORGOTTEN, value, probe, "probe_loss"


def _one_way(case: Case) -> _Found | None:
    """The samples of a training batch ask for one answer, those of the fixed batch for several."""
    last = case.producers[-1] if case.producers else None
    bias = next((one for one in case.parameters(last.path) if one.name == "bias"), None) if last is not None else None
    if last is None or bias is None:
        return None
    slopes = case.summaries(last.at("gradient"), "probe")
    fixed = {step: _agreement(one) for step, one in slopes if one.channels is not None and one.rms > 0}
    norms = (case.over(one, "gradient_norm") for one in (bias.at("gradient", "bias"), last.at("gradient")))
    total, each = (dict(zip(track.steps.tolist(), track.values)) for track in norms)
    steps = [step for step in fixed if step in total and each.get(step, 0.0) > 0]
    live = np.array([(total[step] / each[step]) ** 2 for step in steps])
    size = case.batch_size
    if len(steps) < PERSISTENCE or size is None or (live > SUM.value * size).any():
        return None
    track = Track.of(steps, live / np.maximum(1.0, [fixed[step] for step in steps]))
    value = float(np.median(track.values))
    words = (
        f"The gradients of a batch's {size} samples at `{last.place}` add up to {value:.0f} times as much (in squares) "
        "as those of the fixed batch at the same parameters: each batch asks for one answer."
    )
    return (words, EXCESS, value, track, "gradient") if value > EXCESS.value else None


def _agreement(slope: Summary) -> float:
    """‖Σδ‖²/Σ‖δ‖² of the gradients of samples: their number where all are the same, 1 where they point all ways."""
    assert slope.channels is not None
    samples = slope.size / slope.channels.mean.size
    return float(samples**2 * np.sum(slope.channels.mean**2) / (slope.rms**2 * slope.size))


def _apart(case: Case) -> _Found | None:
    excess, noise = (case.scalar(Site(""), name) for name in ("batch_stat_excess", "batch_stat_noise"))
    if len(excess.late()) < PERSISTENCE or not float(np.median(noise.late().values)) > FELT.value:
        return None
    value = float(np.median(excess.late().values))
    words = (
        f"The inputs of two batches lie {value:.0f} times as far apart as independent samples would (in squares): the "
        "batches are of different kinds."
    )
    return (words, EXCESS, value, excess, "batch_stat_excess") if value > EXCESS.value else None


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
    thresholds={
        "forgotten": FORGOTTEN,
        "learned": LEARNED,
        "spared": SPARED,
        "excess": EXCESS,
        "sum": SUM,
        "felt": FELT,
    },
    causes=(
        "unrelated_targets",
        *("stale_running_stats", "train_eval_gap", "mixed_domains", "drifting_distribution", "noisy_batch_statistics"),
        *("rate_too_high", "rank_collapse", "dead_units", "vanishing_gradient", "uneven_updates"),
    ),
    sick=SICK,
    healthy=HEALTHY,
)
