"""Running averages have had too few updates to forget where they started.

## What it finds
Norms with running statistics that are off by more than half a deviation, of which a twentieth and more is still the
start (mean 0, variance 1): the momentum is too small for the number of steps. Momentum is the weight of the newest
batch here, as in torch; 0.99 in another framework's sense is 0.01.

## Why it hurts
After t updates (1 − m)^t of a running average is its start. Evaluation mode then centres and scales by numbers that no
batch ever had, while training, which does not read them, looks well.

## Evidence
(1 − momentum)^steps for each norm, and the error of its running statistics on the fixed batch.

## Prescription
Build the norms with torch's momentum of 0.1 (`momentum=None` averages all batches evenly), train longer before
evaluating, or recalibrate.

## When to ignore
When the model is evaluated only at the end of a longer training.

## References
PyTorch documentation, *BatchNorm1d* ("momentum"); Ioffe & Szegedy 2015, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import ceil, log

from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.terms.finding import Finding

LEFT = Threshold(0.05, "chosen: three time constants of an average: (1 − m)^(3/m) ≈ e^-3", "share")
OFF = Threshold(
    0.5, "chosen: a centre that is off by half a deviation turns 50% of positive values into 31 or 69%", "deviations"
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with every norm that still remembers its start."""
    steps = float(case.steps[-1])
    left: dict = {}
    for norm in case.norms:
        momentum = norm.spec.momentum if norm.spec else None
        error = case.scalar(norm, "running_stat_error")
        share = (1 - momentum) ** steps if momentum else 0.0
        if share > LEFT.value and error.since(above=OFF.value) is not None and steps >= 30:
            left[norm] = share, momentum, error
    if not left:
        return
    worst = sorted(left, key=lambda norm: -left[norm][2].last)
    share, momentum, error = left[worst[0]]
    yield RULE.finding(
        tuple(dict.fromkeys(norm.path for norm in worst)),
        f"With momentum {momentum:g}, {share:.0%} of the running statistics of `{worst[0].place}` is still their start "
        f"after {steps:.0f} updates, and they are off by {error.last:.2f} deviations; it takes "
        f"{ceil(log(LEFT.value) / log(1 - momentum))} updates to forget it. So it is at {len(left)} of "
        f"{len(case.norms)} norms.",
        LEFT.evidence("start_left", share, error.steps, [(norm.key, left[norm][0]) for norm in worst]),
        severity="error" if case.output_gap.last > OFF.value else "warning",
        since_step=error.since(above=OFF.value),
        prescriptions=[
            remedies.recalibrate(
                "the weights are trained with batch statistics, and the population's are closest to those"
            ),
            remedies.advice(
                "build the norms with `momentum=0.1`", "the weight of the newest batch, in torch's meaning"
            ),
        ],
    )


def _normed(momentum: float, width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width, momentum=momentum), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


SICK = (Scene(partial(_normed, 0.001), ("4",), steps=60),)
HEALTHY = (Scene(partial(_normed, 0.1), steps=60),)

RULE = Rule(
    "NS313",
    "unripe_running_stats",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"left": LEFT, "off": OFF},
    causes=("stale_running_stats", "train_eval_gap"),
    symptom="eval_gap",
    removal="running",
    sick=SICK,
    healthy=HEALTHY,
)
