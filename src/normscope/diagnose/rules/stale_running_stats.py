"""The statistics that a norm will use at inference are not those of the data it sees.

## What it finds
Norms with running statistics whose running mean and deviation are off from the statistics of the fixed batch, in
training mode, by more than half a deviation of the typical channel, to the last probe. The first updates are not
judged, because every running average starts at 0 and 1; nor are probes with fewer than 16 values behind a channel,
whose own statistics are too noisy to compare with. Dropout makes no finding, since both sides are measured under it.

## Why it hurts
In evaluation mode the norm centres and scales by the running statistics. When they are wrong, every layer behind gets
inputs it was not trained on: the training loss is fine and validation is far off, or jumps from one evaluation to the
next.

## Evidence
The distance √((running mean − μ)² + (running deviation − σ)²) in units of σ at each norm, mean over its channels, at
every probe.

## Prescription
Recalibrate: merge the statistics of a few hundred batches into the population's, without touching the weights. Then
remove the cause: a momentum too small for the number of updates (torch's momentum is the weight of the new batch; other
frameworks mean the opposite), statistics from another data set, a norm left in evaluation mode.

## When to ignore
When evaluation will use batch statistics anyway, or the model is recalibrated before it is used.

## References
Ioffe & Szegedy 2015, *Batch Normalization*, section 3.1. Wu & Johnson 2021, *Rethinking "Batch" in BatchNorm*,
section 3. Izmailov et al. 2018, *Averaging weights leads to wider optima*, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import ceil, log

from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.diagnose.track import Track
from normscope.terms.finding import Evidence, Finding, Prescription
from normscope.terms.site import Site

OFF = Threshold(
    0.5,
    "chosen: a centre off by half a deviation turns the share of positive values of a normal channel from 50% into "
    "31 or 69%; no sound run of benchmarks/faults, of 213, is flagged",
    "deviations",
)
WARM = Threshold(
    30,
    "chosen: after three times 1/momentum updates, 30 at torch's 0.1, 4% of the start are left: (1 − m)^(3/m) ≈ e^-3",
    "steps",
)
FEWEST = Threshold(
    16, "chosen: the mean and deviation of 16 values are themselves off by √(1/16 + 1/32) = 0.3 deviations", "values"
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with every norm whose running statistics are off."""
    stale: dict[Site, Track] = {}
    for norm in (one for one in case.norms if _averages(one)):
        error = case.scalar(norm, "running_stat_error").after(int(WARM.value))
        if len(guard := case.guard(norm)) and guard.last > 1:
            continue  # it divides by its eps: an error in deviations says nothing
        if error.since(above=OFF.value) is not None and case.values_per_channel(norm) >= FEWEST.value:
            stale[norm] = error
    if not stale:
        return
    worst = sorted(stale, key=lambda norm: -stale[norm].last)
    first = stale[worst[0]]
    since = first.since(above=OFF.value)
    wrong = case.output_gap.last > OFF.value
    yield RULE.finding(
        [norm.path for norm in worst],
        f"The running statistics of `{worst[0].place}` are off by {first.last:.2f} deviations of a typical channel, "
        f"and those of {len(stale)} of {len(case.norms)} norms by more than {OFF.value}." + _lag(case, worst[0]),
        Evidence(
            "running_stat_error",
            first.last,
            OFF.value,
            tuple(int(step) for step in first.steps),
            OFF.unit,
            OFF.source,
            tuple((norm.key, stale[norm].last) for norm in worst),
        ),
        severity="error" if wrong else "warning",
        since_step=since,
        prescriptions=list(_prescriptions(case, worst)),
    )


def _averages(norm: Site) -> bool:
    """Whether it uses other statistics in training than at inference: a frozen norm uses the same in both."""
    return norm.spec is None or norm.spec.train_from != norm.spec.infer_from


def _left(case: Case, norm: Site) -> float:
    """How much of a running average is still its start."""
    momentum = norm.spec.momentum if norm.spec else None
    return (1 - momentum) ** float(case.steps[-1]) if momentum else 0.0


def _lag(case: Case, norm: Site) -> str:
    left = _left(case, norm)
    momentum = norm.spec.momentum if norm.spec else None
    if left < 0.05 or not momentum:
        return ""
    return (
        f" With momentum {momentum:g}, {left:.0%} of the running average is still its start; it takes "
        f"{ceil(log(0.05) / log(1 - momentum))} updates to forget it."
    )


def _prescriptions(case: Case, norms: list[Site]) -> Iterator[Prescription]:
    """All norms are recalibrated: what made one stale was at work in all, and below the threshold it still adds up."""
    if any(norm.spec is not None and norm.spec.momentum == 0 for norm in norms):
        yield remedies.advice(
            "build the norms with `momentum=0.1`: with 0 the running statistics stay as they were made",
            "in torch's meaning momentum is the weight of the newest batch",
        )
    yield remedies.recalibrate(
        "the weights are trained with batch statistics, and the population's are the closest to those"
    )
    if _left(case, norms[0]) >= 0.05:
        yield remedies.advice(
            "build the norms with `momentum=0.1`", "the weight of the newest batch, in torch's meaning"
        )


def _normed(momentum: float, width: int = 32, dropout: float = 0.0) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(3):
        norm = nn.BatchNorm1d(width, momentum=momentum)
        layers += [nn.Linear(width, width, bias=False), norm, nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, 8))


SICK = (Scene(partial(_normed, 0.001), ("5", "9"), steps=60),)
HEALTHY = (
    Scene(partial(_normed, 0.1), steps=60),
    Scene(partial(_normed, 0.1, dropout=0.5), steps=60),
    Scene(lambda: nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 8)), optimizer=sgd(0.1)),
)

RULE = Rule(
    "NS301",
    "stale_running_stats",
    "error",
    "record",
    check,
    __doc__,
    thresholds={"off": OFF, "warm": WARM, "fewest": FEWEST},
    causes=("train_eval_gap",),
    symptom="eval_gap",
    removal="running",
    sick=SICK,
    healthy=HEALTHY,
)
