"""The network is one affine map, however many layers it has.

## What it finds
Networks of two layers or more with no activation function between them whose answer to the mean of two inputs is the
mean of its answers, on the fixed batch in evaluation mode: the activations were left out. A run that has lost four
fifths of its loss has a note.

## Why it hurts
Layers without a bend between them multiply into one matrix: such a network can tell no more apart than a single linear
layer, at the price of all of them, and stops where linear regression does.

## Evidence
The root mean square of f((x + x')/2) − (f(x) + f(x'))/2 over pairs of samples, over the deviation of f between samples.

## Prescription
Put an activation function behind every hidden layer.

## When to ignore
When a linear network is studied on purpose, or a matrix is held as a product of two thin ones.

## References
Goodfellow, Bengio & Courville 2016, *Deep Learning*, section 6.1. Saxe, McClelland & Ganguli 2014, *Exact solutions to
the nonlinear dynamics of learning in deep linear neural networks*.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import mse_loss

from normscope.anatomy.batch import Probe, tensors
from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.counterfactual import Experiment, rms, spread
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Data, Scene, sgd
from normscope.terms.finding import Finding

STRAIGHT = Threshold(
    1e-4,
    "chosen: far above the rounding of float32 over some hundred terms, far below what any activation function bends "
    "between two samples",
    "deviations",
)
ENOUGH = Threshold(0.8, "chosen: where a fifth of the loss is left, a line is nearly what the task asks for", "share")


def check(case: Case) -> Iterator[Finding]:
    """At most one finding."""
    layers = tuple(dict.fromkeys(site.path for site in case.producers))
    if case.experiment is None or len(layers) < 2 or case.hidden_activations:
        return
    value = _bend(case.experiment)
    if value is None or value > STRAIGHT.value:
        return
    yield RULE.finding(
        layers,
        f"The {len(layers)} layers of the network make one affine map: between pairs of samples it bends by "
        f"{value:.1g} of its deviation.",
        STRAIGHT.evidence("bend", value, [int(case.steps[0])], [(path, value) for path in layers]),
        severity="note" if (case.fallen or 0.0) > ENOUGH.value else None,
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(
                f"put an activation function such as `nn.ReLU()` behind {remedies.few(layers[:-1])}",
                "only a bend between two layers makes them more than one",
            )
        ],
    )


def _bend(tried: Experiment) -> float | None:
    """How far the network is from affine between samples; None where that cannot be told."""
    probe = Probe.of(tried.probe)
    given = tensors((probe.args, dict(probe.kwargs)))
    if not given or any(not one.is_floating_point() or not one.ndim or len(one) < 2 for one in given):
        return None
    one, other = tried.answer(), tried.answer(lambda x: x.roll(1, 0))
    between = tried.answer(lambda x: (x + x.roll(1, 0)) / 2)
    if one is None or other is None or between is None or len(one) != len(given[0]):
        return None
    bend, apart = rms(between - (one + other) / 2), spread(one)
    return float(bend / apart) if float(apart) > 1e-6 * float(rms(one)) else None


def _products() -> Data:
    inputs = torch.randn(512, 8)
    return inputs, inputs[:, :4] * inputs[:, 4:]


def _stack(bent: bool) -> nn.Module:
    middle: list[nn.Module] = [nn.Tanh()] if bent else []
    return nn.Sequential(nn.Linear(8, 32), *middle, nn.Linear(32, 4))


SICK = (Scene(lambda: _stack(False), ("0", "1"), _products, sgd(0.02), steps=12, loss=mse_loss, at_hand=True),)
HEALTHY = (Scene(lambda: _stack(True), (), _products, sgd(0.02), steps=12, loss=mse_loss, at_hand=True),)

RULE = Rule(
    "NS229",
    "linear_network",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"straight": STRAIGHT, "enough": ENOUGH},
    causes=(
        "unrelated_targets",
        "rank_collapse",
    ),
    sick=SICK,
    healthy=HEALTHY,
)
