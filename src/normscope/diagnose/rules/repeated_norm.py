"""Two normalizations stand in a row.

## What it finds
A normalization that reads the output of another, with nothing but rearrangements between. Batch normalization followed
by normalization of each sample is left out: that pair computes something that neither computes alone.

## Why it hurts
The second takes away what the first has just set: its γ and β reach nothing behind the second but through the mixing of
channels, and the pass over memory is paid twice. Often it is what is left of an edit.

## Evidence
The data flow: how many normalizations read another one.

## Prescription
Remove one of the two; keep the one over the axes that are meant.

## When to ignore
When the second is the final normalization of a stack whose last layer ends with one (post-norm transformers).

## References
Ba, Kiros & Hinton 2016, *Layer Normalization*, table 1: to which rescalings each normalization is invariant.
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

REPEATED = Threshold(0, "Ba et al. 2016, table 1: the second is invariant to what the first scales", "normalizations")


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding with the second norm of every pair."""
    if blueprint.flow is None:
        return
    pairs = [pair for pair in blueprint.flow.chain("norm", "norm", sole=True) if not _combined(*pair)]
    sites = tuple(dict.fromkeys(second.path for _, second in pairs))
    if not sites:
        return
    yield RULE.finding(
        sites,
        f"{len(sites)} normalization{'s read' if len(sites) > 1 else ' reads'} the output of another one.",
        Evidence("repeated_norms", len(sites), REPEATED.value, unit=REPEATED.unit, source=REPEATED.source),
        prescriptions=[advice(f"remove {few(sites)} or the normalization before", "the second undoes the first")],
    )


def _combined(first: Call, second: Call) -> bool:
    """Over the batch, then over each sample: batch-channel normalization."""
    specs = [spec_of(call.module) if call.module is not None else None for call in (first, second)]
    over = [spec.over if spec is not None else frozenset() for spec in specs]
    return "N" in over[0] and "N" not in over[1]


SICK = (
    Specimen(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.LayerNorm(8), nn.ReLU()), ("2",)),
    Specimen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.BatchNorm2d(8)), ("3",)),
)
HEALTHY = (
    Specimen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8))),
    Specimen(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8))),
)

RULE = Rule(
    "NS109",
    "repeated_norm",
    "note",
    "model",
    check,
    __doc__,
    thresholds={"repeated": REPEATED},
    sick=SICK,
    healthy=HEALTHY,
)
