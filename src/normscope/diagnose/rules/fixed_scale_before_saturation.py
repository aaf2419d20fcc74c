"""A normalization without scale and offset feeds a saturating activation.

## What it finds
A normalization with neither γ nor β whose output goes straight into a sigmoid, tanh, softsign or their hard forms.

## Why it hurts
Its output has mean 0 and deviation 1 in every channel and cannot move. On that interval the sigmoid is a straight line
to within 3%, so the layer adds next to nothing that a linear layer could not do.

## Evidence
The data flow: how many saturating activations have an input that is fixed so.

## Prescription
Switch the affine parameters on (`affine=True`, `elementwise_affine=True`): they let each channel choose how much of
the function's curve it uses.

## When to ignore
When the layer behind the activation is meant to be the only one that learns.

## References
Ioffe & Szegedy 2015, section 3: "normalizing the inputs of a sigmoid would constrain them to the linear regime of the
nonlinearity".
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normscope.anatomy.recognize import spec_of
from normscope.diagnose.blueprint import Blueprint
from normscope.diagnose.remedies import advice, few
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding

FIXED = Threshold(0, "Ioffe & Szegedy 2015, section 3: the linear regime of the nonlinearity", "activations")

_CURVED = frozenset(["sigmoid", "tanh", "hardsigmoid", "hardtanh", "softsign", "logsigmoid"])


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding with every norm that keeps a saturating activation on its straight part."""
    flow = blueprint.flow
    if flow is None:
        return
    sites = []
    for norm, behind in flow.chain("norm", "activation"):
        spec = spec_of(norm.module) if norm.module is not None else None
        fixed = spec is not None and not spec.affine and not spec.bias and spec.train_from != "given"
        if fixed and behind.activation is not None and behind.activation.name in _CURVED:
            sites.append(norm.path)
    sites = tuple(dict.fromkeys(sites))
    if not sites:
        return
    yield RULE.finding(
        sites,
        f"{len(sites)} saturating activation{'s get' if len(sites) > 1 else ' gets'} an input of fixed mean 0 and "
        "deviation 1.",
        Evidence("fixed_inputs", len(sites), FIXED.value, unit=FIXED.unit, source=FIXED.source),
        prescriptions=[advice(f"build {few(sites)} with `affine=True`", "γ and β let the function bend")],
    )


SICK = (
    Specimen(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False), nn.Sigmoid()), ("1",)),
    Specimen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.Tanh()), ("1",)),
)
HEALTHY = (
    Specimen(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Sigmoid())),
    Specimen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU())),
)

RULE = Rule(
    "NS111",
    "fixed_scale_before_saturation",
    "note",
    "model",
    check,
    __doc__,
    thresholds={"fixed": FIXED},
    sick=SICK,
    healthy=HEALTHY,
)
