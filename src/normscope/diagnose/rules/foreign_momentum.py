"""A momentum was carried over from a framework in which it means the opposite.

## What it finds
Running statistics in which the newest batch weighs 0.9 or more. Torch's `momentum` is the weight of the new batch
(default 0.1); in Keras, flax and TensorFlow it is the weight of the past (default 0.99).

## Why it hurts
Read as torch's, 0.99 keeps one percent of the past: the running statistics are those of the last training batch alone,
with all its chance, and evaluation is as noisy as that batch is small.

## Evidence
The weight of the newest batch in the running statistics.

## Prescription
Set `momentum` to one minus the other framework's number: 0.01 for 0.99. `normscope.nn.conventions` translates whole
configurations. Then `normscope.recalibrate` repairs the statistics of a model that is already trained.

## When to ignore
When the last batch is meant, as with full-batch training.

## References
Keras, `BatchNormalization(momentum=0.99, epsilon=1e-3)`; torch, `BatchNorm2d(momentum=0.1, eps=1e-5)`, whose notes say
that its momentum is not the conventional one.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normscope.diagnose.blueprint import Blueprint
from normscope.diagnose.remedies import advice, few
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding, Prescription

FORGETFUL = Threshold(
    0.9,
    "chosen: below Keras' and flax' default of 0.99; with a tenth of the past left it is no average",
    "of the newest batch",
)


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding with every norm that forgets at once."""
    norms = [norm for norm in blueprint.norms if (norm.spec.momentum or 0) >= FORGETFUL.value]
    if not norms:
        return
    worst = max(float(norm.spec.momentum or 0) for norm in norms)
    sites = tuple(norm.path for norm in norms)
    other = ", with the eps of 0.001 that comes from there too" if all(norm.spec.eps == 1e-3 for norm in norms) else ""
    yield RULE.finding(
        sites,
        f"{len(sites)} normalization{'s' if len(sites) > 1 else ''} with momentum {worst:g}: the newest batch weighs "
        f"{worst:.0%} of the running statistics{other}.",
        Evidence("momentum", worst, FORGETFUL.value, unit=FORGETFUL.unit, source=FORGETFUL.source),
        prescriptions=[
            advice(f"build {few(sites)} with `momentum={1 - worst:g}`", "torch's momentum is the weight of the new"),
            Prescription(
                "recalibrate",
                sites,
                words="take the statistics anew from the training data: `normscope.recalibrate(model, loader)`",
                reason="those of the last batch are what a trained model holds",
            ),
        ],
    )


SICK = (Specimen(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.99, eps=1e-3)), ("1",)),)
HEALTHY = (
    Specimen(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=0.01, eps=1e-3))),
    Specimen(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=None))),
)

RULE = Rule(
    "NS107",
    "foreign_momentum",
    "warning",
    "model",
    check,
    __doc__,
    thresholds={"forgetful": FORGETFUL},
    causes=("train_eval_gap",),
    sick=SICK,
    healthy=HEALTHY,
)
