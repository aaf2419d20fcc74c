"""A normalization stands right before the saturating output of the model.

## What it finds
A normalization whose output goes through a sigmoid, tanh or softmax and is then returned by the model.

## Why it hurts
The normalization fixes the deviation of the logits, so the model can be no surer than γ allows: with γ = 1 a sigmoid
gives 0.88 at two deviations, and 0.98 only to one sample in 20,000. With statistics over the batch, the answer for
one sample also depends on the others in the batch.

## Evidence
The data flow: how many of the model's outputs are normalized right before they saturate.

## Prescription
Remove the last normalization, or let a linear layer stand between it and the output.

## When to ignore
When the spread of the outputs is meant to be bounded.

## References
Radford, Metz & Chintala 2016, *Unsupervised Representation Learning with DCGAN*, section 3: batch normalization on the
output layer made samples oscillate, and was left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normscope.diagnose.blueprint import Blueprint
from normscope.diagnose.remedies import advice, few
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding

BOUND = Threshold(0, "Radford et al. 2016, section 3: no normalization on the output layer", "outputs")

_SATURATING = ("sigmoid", "tanh", "hardsigmoid", "hardtanh", "softmax", "log_softmax", "logsigmoid")


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding with every norm before a saturating output."""
    flow = blueprint.flow
    if flow is None:
        return
    found = {
        norm.path: function
        for norm, last in flow.chain("norm", "activation")
        if last.index in flow.outputs and (function := last.activation) and function.name in _SATURATING
    }
    if not found:
        return
    sites = tuple(found)
    functions = ", ".join(sorted({function.name for function in found.values()}))
    yield RULE.finding(
        sites,
        f"{len(sites)} output{'s are' if len(sites) > 1 else ' is'} normalized right before {functions}.",
        Evidence("normalized_outputs", len(sites), BOUND.value, unit=BOUND.unit, source=BOUND.source),
        prescriptions=[
            advice(f"remove {few(sites)}, or put a linear layer behind it", "logits must be free to grow and to shrink")
        ],
    )


SICK = (
    Specimen(lambda: nn.Sequential(nn.Linear(8, 1), nn.BatchNorm1d(1), nn.Sigmoid()), ("1",)),
    Specimen(lambda: nn.Sequential(nn.Linear(8, 3), nn.LayerNorm(3), nn.Softmax(-1)), ("1",)),
)
HEALTHY = (
    Specimen(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, 1))),
    Specimen(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 1), nn.Sigmoid())),
)

RULE = Rule(
    "NS110",
    "norm_before_output",
    "note",
    "model",
    check,
    __doc__,
    thresholds={"bound": BOUND},
    sick=SICK,
    healthy=HEALTHY,
)
