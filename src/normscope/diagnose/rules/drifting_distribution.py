"""What the layers read keeps moving: their inputs do not settle while they learn from them.

## What it finds
A run in whose second half the pre-activations of the typical hidden layer move by more than half of their deviation
within ten steps, while the loss does not fall for it. The same fixed batch is looked at each time, so neither the
choice of samples nor a change of the data can do it: the parameters move it. It is measured unit by unit, because the
units of a layer can move apart while the layer as a whole looks the same. Layers behind a norm are left out, because
the norm holds what they read. The start of a run, in which every healthy network moves a lot, is left out too.

## Why it hurts
A layer learns on the inputs that the layers before hand it. When those lie somewhere else ten steps later, what it has
learned is for inputs that no longer come; it follows, and moves the next layer in turn.

## Evidence
Between neighbouring probes, the distance √((μ−μ')² + (σ−σ')²) of the units (root mean square), in deviations of the
layer, scaled to ten steps where the probes lie further apart; the median over layers, and over the second half of the
run. The samples are the same at every probe, so there is no sampling noise in it.

## Prescription
Normalize what the activations read; lower the learning rate. Steps that large usually overshoot.

## When to ignore
At the beginning of a training with a warm-up that has not ended.

## References
Ioffe & Szegedy 2015, *Batch Normalization*, section 2 (internal covariate shift). Santurkar et al. 2018, *How does
batch normalization help optimization?*, section 2, who doubt that this shift is what batch normalization cures: the
finding states the movement, and its usual cause, steps too large for this network.
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
from normscope.terms.finding import Evidence, Finding, Prescription

MOVED = Threshold(
    0.5,
    "chosen: a normal unit whose mean moves by half a deviation is positive on 31 or 69% of the samples, no longer "
    "on 50%; no sound run of benchmarks/faults, of 213, is flagged",
    "deviations",
)
GAINED = Threshold(
    0.1,
    "chosen: a network that learns fast also moves fast; a tenth of the loss, beyond its noise, is the least that "
    "counts as learning in every rule here",
    "share",
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with the layers that move beyond the threshold, when that does not bring the loss down."""
    drift = case.drift
    late = drift.typical().late()
    if len(late) < PERSISTENCE or not float(np.median(late.values)) > MOVED.value:
        return
    if (case.loss.late().fallen or 0.0) > GAINED.value:
        return
    moves = {path: float(np.median(drift.at(path).late().values)) for path in drift.paths}
    worst = sorted((path for path in moves if moves[path] > MOVED.value), key=lambda path: -moves[path])
    value = float(np.median(late.values))
    yield RULE.finding(
        worst,
        f"In ten steps the inputs of a typical hidden activation move by {value:.2f} of their deviation, through the "
        f"second half of the run, without the loss falling; {len(worst)} of {len(drift)} move by more than half.",
        Evidence(
            "drift",
            value,
            MOVED.value,
            tuple(int(step) for step in late.steps),
            MOVED.unit,
            MOVED.source,
            tuple((path, moves[path]) for path in worst),
        ),
        severity="note" if case.thrives else "warning",
        since_step=int(late.steps[0]),
        prescriptions=list(_prescriptions(case)),
    )


def _prescriptions(case: Case) -> Iterator[Prescription]:
    norm = remedies.normalize(case, case.hidden_activations)
    if norm is not None:
        yield norm
    yield remedies.advice("divide the learning rate by 3 to 10", "the parameters move the distributions, step by step")


def _stack(function: type[nn.Module] = nn.ReLU, depth: int = 3, width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), function()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


SICK = (Scene(_stack, ("3", "5"), optimizer=sgd(0.05, 0.99), steps=80),)
HEALTHY = (
    Scene(_stack, steps=80),
    Scene(partial(_stack, nn.Tanh, 6), steps=80),
)

RULE = Rule(
    "NS204",
    "drifting_distribution",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"moved": MOVED, "gained": GAINED},
    sick=SICK,
    healthy=HEALTHY,
)
