"""A normalization takes the statistics of the batch also when the model is used.

## What it finds
Batch normalization that keeps no running statistics (`track_running_stats=False`) and so has nothing else to go by in
evaluation mode.

## Why it hurts
The answer for one sample depends on which others share its batch: sorted inputs, a last batch that is small, or a
single image give other answers than training did, and a single vector cannot be normalized at all.

## Evidence
How many normalizations have no statistics of their own to use.

## Prescription
Build them with `track_running_stats=True` (the default), and take the statistics of a trained model with
`normscope.recalibrate`. Where single samples are the use, normalize each sample: `normscope.convert`.

## When to ignore
When batches in use are as large and as mixed as in training, or the batch is meant to be the reference (style transfer,
adaptation to a domain).

## References
Ioffe & Szegedy 2015, section 3.1: at inference "we want the output to depend only on the input, deterministically".
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normscope.diagnose.blueprint import Blueprint
from normscope.diagnose.remedies import advice, few
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding

WITHOUT = Threshold(0, "Ioffe & Szegedy 2015, section 3.1: the output depends on the input alone", "normalizations")


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding with every norm that goes by the batch in use."""
    sites = tuple(norm.path for norm in blueprint.norms if "N" in norm.spec.over and norm.spec.infer_from == "batch")
    if not sites:
        return
    yield RULE.finding(
        sites,
        f"{len(sites)} batch normalization{'s keep' if len(sites) > 1 else ' keeps'} no statistics, so an answer in "
        "use depends on the other samples of its batch.",
        Evidence("without_statistics", len(sites), WITHOUT.value, unit=WITHOUT.unit, source=WITHOUT.source),
        prescriptions=[
            advice(f"build {few(sites)} with `track_running_stats=True`", "one sample then gets one answer"),
        ],
    )


def _small(**known: bool) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, **known), nn.ReLU())


SICK = (Specimen(lambda: _small(track_running_stats=False), ("1",)),)
HEALTHY = (Specimen(_small), Specimen(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8))))

RULE = Rule(
    "NS112",
    "batch_statistics_in_use",
    "warning",
    "model",
    check,
    __doc__,
    thresholds={"without": WITHOUT},
    sick=SICK,
    healthy=HEALTHY,
)
