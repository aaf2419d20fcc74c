"""Saturating activations are stacked deep with no normalization between.

## What it finds
Runs of layers with sigmoid, tanh or their like, with no normalization and no shortcut between, where what the weights
and the steepest slope of each function let through is next to nothing at the end of the run. And softmaxes that stand
between layers as if they were activations.

## Why it hurts
A gradient passes each such layer multiplied by the layer's weights and by the function's slope, at most 1/4 for a
sigmoid and 1 for tanh. The product falls geometrically with depth: the first layers stay as they were initialized
while the last ones saturate.

## Evidence
The largest factor by which the run can hand on a gradient: the product of gain and steepest slope over its layers.

## Prescription
Put a normalization before each activation, or draw tanh layers at the gain 5/3 and replace sigmoids in hidden layers.

## When to ignore
When the stack is not trained from here (frozen features).

## References
Glorot & Bengio 2010, *Understanding the Difficulty of Training Deep Feedforward Neural Networks*, section 3.1: with
weights from U(−1/√n, 1/√n), four sigmoid layers learn late and five never.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from normscope.anatomy.observe import Call
from normscope.diagnose.blueprint import Blueprint
from normscope.diagnose.gains import Stack, stacks
from normscope.diagnose.remedies import advice, few
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding, Prescription

STARVED = Threshold(
    (1 / (4 * 3**0.5)) ** 4.5,
    "Glorot & Bengio 2010, section 3.1: chosen between their four sigmoid layers, which learn late, and five, which "
    "never do; a layer of theirs hands on 1/4 · 1/√3 at most",
    "largest factor of a gradient",
)

HANDED = Threshold(
    1.0,
    "derived: at equal probabilities 1/n the slope of a softmax over n units is (1/n)(1 − 1/n) for each, and sums to "
    "zero over them; any layer that only a softmax feeds gets that share",
    "share",
)
_STEEPEST = {"sigmoid": 1 / 4, "hardsigmoid": 1 / 6, "tanh": 1.0, "hardtanh": 1.0, "softsign": 1.0}


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding with the longest run of each network."""
    if blueprint.flow is None:
        return
    starved = [stack for stack in stacks(blueprint.flow, _slope) if stack.factor < STARVED.value]
    if not starved:
        yield from _between(blueprint)
        return
    run = starved[0]
    activations = tuple(call.path for call in blueprint.flow.calls if _follows(blueprint, call, run))
    yield RULE.finding(
        run.paths,
        f"{len(run.paths)} saturating layers in a row with no normalization hand on at most {run.factor:.2g} of a "
        "gradient.",
        Evidence("gradient_bound", run.factor, STARVED.value, unit=STARVED.unit, source=STARVED.source),
        prescriptions=[
            Prescription(
                "insert_norm",
                activations,
                {"norm": "BatchNorm"},
                words=f"put a batch normalization before each activation ({few(activations)})",
                reason="its output has deviation 1 whatever the weights are, where the function has its slope",
            )
            if activations
            else advice("put a normalization before each activation", "its output has deviation 1, where the slope is"),
        ],
    )


def _between(blueprint: Blueprint) -> Iterator[Finding]:
    """Softmaxes that nothing reads but a layer: of a signal over n units each hands on about 1/n."""
    flow = blueprint.flow
    assert flow is not None
    inner = []
    for call in flow.calls:
        softmax = call.role == "activation" and call.activation is not None and call.activation.name == "softmax"
        readers = blueprint.readers(call) if softmax else ()
        before = [one for one in flow.producers(call, skip=True) if one.role == "producer"] if softmax else []
        if readers and before and all(one.role == "producer" for one in readers):
            inner.append((call, before[0]))
    widths = [len(weight) for _, one in inner if isinstance(weight := getattr(one.module, "weight", None), Tensor)]
    if not widths:
        return
    share = 1 / max(widths)
    yield RULE.finding(
        tuple(dict.fromkeys(call.path for call, _ in inner)),
        f"{len(inner)} softmax{'es stand' if len(inner) > 1 else ' stands'} between layers, over up to {max(widths)} "
        f"units that share a sum of one: each hands on about {share:.2g} of a signal and of its gradient.",
        Evidence("share", share, HANDED.value, unit=HANDED.unit, source=HANDED.source),
        severity="warning" if len(inner) > 1 else "note",
        prescriptions=[
            advice(
                f"use `nn.ReLU()` in the place of {few([call.path for call, _ in inner])}",
                "a softmax makes probabilities of answers, at the end, or weights of a mean",
            )
        ],
    )


def _slope(gain: float, activation: Call) -> float | None:
    row = activation.activation
    return gain * _STEEPEST[row.name] if row is not None and row.name in _STEEPEST else None


def _follows(blueprint: Blueprint, call: Call, run: Stack) -> bool:
    """Whether `call` is the activation module behind a layer of the run."""
    assert blueprint.flow is not None
    row = call.activation
    if call.module is None or row is None or row.name not in _STEEPEST:
        return False
    return any(producer.path in run.paths for producer in blueprint.flow.producers(call, skip=True))


def _stack(function: type[nn.Module], depth: int, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(32, 32), *([nn.BatchNorm1d(32)] if norm else []), function()]
    return nn.Sequential(*layers, nn.Linear(32, 2))


SICK = (
    Specimen(lambda: _stack(nn.Sigmoid, 8), ("0", "14")),
    Specimen(lambda: _stack(nn.Tanh, 24), ("0", "46")),
)
HEALTHY = (
    Specimen(lambda: _stack(nn.Sigmoid, 2)),
    Specimen(lambda: _stack(nn.Tanh, 8)),
    Specimen(lambda: _stack(nn.Sigmoid, 8, norm=True)),
    Specimen(lambda: _stack(nn.ReLU, 24)),
)

RULE = Rule(
    "NS117",
    "unnormalized_saturating_stack",
    "warning",
    "model",
    check,
    __doc__,
    thresholds={"starved": STARVED, "handed": HANDED},
    causes=("vanishing_gradient", "poor_initialization", "rank_collapse", "unrelated_targets", "rate_too_low"),
    travels="backward",
    sick=SICK,
    healthy=HEALTHY,
)
