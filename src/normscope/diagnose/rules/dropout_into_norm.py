"""Dropout goes straight into a normalization that keeps statistics.

## What it finds
A dropout layer whose output goes straight into a batch normalization with running statistics, with nothing but
rearrangements between. That is read off the model; `dropout_variance_shift` measures the harm in a run.

## Why it hurts
In training dropout zeroes values and scales the others up: the mean stays, the variance grows. The normalization
averages that larger variance into its running statistics. At inference dropout is off, the variance falls back, and
the layer divides by a deviation that its input no longer has: every channel comes out too small, in every layer.

## Evidence
The variance in training over that at inference, 1/(1 − p) for a centred input: kept values are divided by
1 − p, so E[x²] grows to (1 − p)/(1 − p)² of itself.

## Prescription
Move dropout behind the last normalization, just before the output layer. Where it must stay, recalibrate the running
statistics with dropout off (`normscope.recalibrate`) before the model is used.

## When to ignore
When the statistics are recalibrated before every evaluation.

## References
Li, Chen, Hu & Yang 2019, *Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift*.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normscope.anatomy.observe import Call
from normscope.anatomy.recognize import spec_of
from normscope.diagnose.blueprint import Blueprint
from normscope.diagnose.remedies import advice, few
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding

SHIFT = Threshold(
    1.0, "1/(1 − p) at p = 0: without dropout the two variances are equal (Li et al. 2019)", "training / inference"
)

_LAYERS = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")
_FUNCTIONS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding with every norm that dropout feeds."""
    if blueprint.flow is None:
        return
    shifts: dict[str, float] = {}
    for kind in (*_LAYERS, *_FUNCTIONS):
        for dropout, norm in blueprint.flow.chain(kind, "norm"):
            if _keeps(norm) and (shift := 1 / (1 - _probability(dropout))) > SHIFT.value:
                shifts[norm.path] = max(shift, shifts.get(norm.path, 0.0))
    if not shifts:
        return
    worst = max(shifts.values())
    yield RULE.finding(
        tuple(shifts),
        f"{len(shifts)} normalization{'s' if len(shifts) > 1 else ''} with running statistics behind dropout: the "
        f"variance of what comes in is up to {worst:.2g} times as large in training as at inference.",
        Evidence("variance_shift", worst, SHIFT.value, unit=SHIFT.unit, source=SHIFT.source),
        prescriptions=[
            advice(
                f"move the dropout before {few(tuple(shifts))} behind the last normalization",
                "there it changes no statistic that is kept",
            )
        ],
    )


def _keeps(norm: Call) -> bool:
    spec = spec_of(norm.module) if norm.module is not None else None
    return spec is not None and "N" in spec.over and spec.infer_from not in ("input", "batch", "given")


def _probability(dropout: Call) -> float:
    """The share dropped; a function does not tell, and torch's default is 0.5."""
    return min(float(getattr(dropout.module, "p", 0.5)), 0.999)


def _mlp(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), *between, nn.Linear(8, 2))


SICK = (
    Specimen(lambda: _mlp(nn.Dropout(0.5), nn.BatchNorm1d(8)), ("3",)),
    Specimen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout2d(0.2), nn.BatchNorm2d(8)), ("2",)),
)
HEALTHY = (
    Specimen(lambda: _mlp(nn.BatchNorm1d(8), nn.Dropout(0.5))),
    Specimen(lambda: _mlp(nn.Dropout(0.5), nn.LayerNorm(8))),
    Specimen(lambda: _mlp(nn.Dropout(0.0), nn.BatchNorm1d(8))),
)

RULE = Rule(
    "NS103",
    "dropout_into_norm",
    "warning",
    "model",
    check,
    __doc__,
    thresholds={"shift": SHIFT},
    causes=("train_eval_gap", "excessive_dropout"),
    sick=SICK,
    healthy=HEALTHY,
)
