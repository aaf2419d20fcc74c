"""A batch normalization stands behind the activation, where before it is the convention.

## What it finds
A layer, its activation, then a batch normalization that reads the activation alone.

## Why it hurts
The values behind an activation are skewed and often cut at zero, so centring and scaling leaves them further from a
symmetric distribution than it leaves the pre-activations; the activation itself gets an input of any scale. Folding
for inference is lost too: a normalization folds into the layer before it, not through an activation.

## Evidence
The data flow: how many normalizations read an activation.

## Prescription
Put the normalization between the layer and the activation, and drop the layer's bias. Try both: it is a convention,
and some networks do as well the other way round.

## When to ignore
When the order is meant (networks that normalize the input of each layer).

## References
Ioffe & Szegedy 2015, section 3.2: "we add the BN transform immediately before the nonlinearity".
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

BEHIND = Threshold(0, "Ioffe & Szegedy 2015, section 3.2: immediately before the nonlinearity", "normalizations")


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding with every norm that stands behind its activation."""
    if blueprint.flow is None:
        return
    sites = []
    for *_, norm in blueprint.flow.chain("producer", "activation", "norm", sole=True):
        spec = spec_of(norm.module) if norm.module is not None else None
        if spec is not None and "N" in spec.over:
            sites.append(norm.path)
    sites = tuple(dict.fromkeys(sites))
    if not sites:
        return
    stand = "normalization stands" if len(sites) == 1 else "normalizations stand"
    yield RULE.finding(
        sites,
        f"{len(sites)} batch {stand} behind an activation, where before it is the convention.",
        Evidence("norms_behind", len(sites), BEHIND.value, unit=BEHIND.unit, source=BEHIND.source),
        prescriptions=[
            advice(
                f"try {few(sites)} between the layer and its activation",
                "pre-activations are closer to the symmetric distribution that two moments describe",
            )
        ],
    )


SICK = (Specimen(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2)), ("2",)),)
HEALTHY = (
    Specimen(lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))),
    Specimen(lambda: nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))),
)

RULE = Rule(
    "NS108",
    "norm_after_activation",
    "note",
    "model",
    check,
    __doc__,
    thresholds={"behind": BEHIND},
    sick=SICK,
    healthy=HEALTHY,
)
