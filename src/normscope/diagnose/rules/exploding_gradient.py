"""The first layers get far more gradient than the last ones: it grows at every layer on its way back.

## What it finds
A network whose first quarter of layers counts more than four hundred times as much as its last quarter, to the last
sampled step. A layer counts by ‖W‖·‖∂L/∂W‖, the most that the loss moves for a relative change of its weights.

## Why it hurts
A learning rate that suits the last layers throws the first ones far off, and one that suits the first ones leaves the
last where they are. The loss surface is rough: a small step anywhere changes everything.

## Evidence
The relative gradients along depth at each sampled step of training.

## Prescription
Normalize what the activations read, or draw the weights anew at the gain of the activation; meanwhile, clip gradients.

## When to ignore
When layers are trained at learning rates of their own that make up for it.

## References
Pascanu, Mikolov & Bengio 2013, *On the difficulty of training recurrent neural networks*, section 2.
Schoenholz et al. 2017, *Deep Information Propagation*. Philipp, Song & Carbonell 2017, *The exploding
gradient problem demystified*.
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
from normscope.terms.finding import Evidence, Finding, Prescription

EXPLODED = Threshold(
    float(np.exp(6)),
    "six e-folds: networks train up to a depth of about six of the scales over which a gradient grows (the "
    "experiments of Schoenholz et al. 2017); no sound run of benchmarks/faults, of 213, is flagged",
    "ratio",
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with the layers whose relative gradient exceeds the last ones' by the threshold."""
    layers = case.sensitivity
    flood = layers.flood()
    since = flood.since(above=EXPLODED.value)
    if since is None:
        return
    column = layers.values[:, -1]
    ratios = column / np.nanmedian(column[-max(1, len(column) // 4) :])
    worst = [layers.paths[place] for place in np.argsort(-ratios) if ratios[place] > EXPLODED.value]
    yield RULE.finding(
        worst or layers.paths[:1],
        f"The relative gradient grows {flood.last:.2g}-fold from the last layers to the first, since step {since}; "
        f"{len(worst)} of {len(layers)} layers are beyond {EXPLODED.value:.0f} times the last ones.",
        Evidence(
            "relative_gradient",
            flood.last,
            EXPLODED.value,
            tuple(int(step) for step in flood.steps),
            EXPLODED.unit,
            EXPLODED.source,
            tuple((path, float(ratios[layers.paths.index(path)])) for path in worst),
        ),
        severity="error" if case.learns is False else "warning",
        since_step=since,
        prescriptions=list(_prescriptions(case)),
    )


def _prescriptions(case: Case) -> Iterator[Prescription]:
    yield from remedies.cures(case, case.hidden_activations)
    yield remedies.advice("clip gradients with `nn.utils.clip_grad_norm_(parameters, 1.0)`")


def _tanh_stack(gain: float, depth: int = 20, width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=gain * width**-0.5)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


SICK = (Scene(partial(_tanh_stack, 3.0, 30), ("0", "2"), optimizer=sgd(1e-6), steps=8, every=2),)
HEALTHY = (Scene(partial(_tanh_stack, 1.3), optimizer=sgd(0.01), steps=8, every=2),)

RULE = Rule(
    "NS207",
    "exploding_gradient",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"exploded": EXPLODED},
    causes=("nonfinite_values", "dead_units", "uneven_updates"),
    travels="backward",
    symptom="flooded",
    removal="scales",
    sick=SICK,
    healthy=HEALTHY,
)
