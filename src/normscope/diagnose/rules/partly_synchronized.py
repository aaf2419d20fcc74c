"""Some batch normalizations share their statistics between processes, and some do not.

## What it finds
A model that holds both synchronized batch normalization and batch normalization whose statistics stay on one device,
or synchronized layers over different process groups.

## Why it hurts
`nn.SyncBatchNorm.convert_sync_batchnorm` replaces what derives from torch's batch normalization and passes over all
else: fused classes, classes of other libraries, layers added later. What was passed over normalizes by its own
device's few samples and drifts apart from device to device: only one device's running statistics reach the checkpoint.

## Evidence
How many batch normalizations are not synchronized in a model where others are.

## Prescription
Convert the rest: `normscope.convert(model, "SyncBatchNorm")` also takes classes that torch's conversion passes over.

## When to ignore
When those layers are frozen, or see the same input on every device.

## References
torch.nn.SyncBatchNorm, `convert_sync_batchnorm`; Peng et al. 2018, *MegDet*, section 3.3 (cross-GPU normalization).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normscope.diagnose.blueprint import Blueprint
from normscope.diagnose.remedies import few
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding, Prescription

LOCAL = Threshold(0, "torch.nn.SyncBatchNorm: the conversion is meant for every batch normalization", "layers")


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding with the norms that were passed over."""
    batch = [norm for norm in blueprint.norms if "N" in norm.spec.over and norm.spec.train_from != "given"]
    shared = [norm for norm in batch if norm.spec.train_from == "synchronized"]
    local = tuple(norm.path for norm in batch if norm.spec.train_from != "synchronized")
    if not shared or not local:
        return
    yield RULE.finding(
        local,
        f"{len(local)} of {len(batch)} batch normalizations are not synchronized, the others are.",
        Evidence("local_norms", len(local), LOCAL.value, unit=LOCAL.unit, source=LOCAL.source),
        prescriptions=[
            Prescription(
                "convert",
                local,
                {"to": "SyncBatchNorm"},
                words=f"synchronize {few(local)} too: `normscope.convert(model, 'SyncBatchNorm')`",
                reason="all layers then see the statistics of the whole batch",
            )
        ],
    )


SICK = (Specimen(lambda: nn.Sequential(nn.SyncBatchNorm(4), nn.Linear(4, 4), nn.BatchNorm1d(4)), ("2",)),)
HEALTHY = (
    Specimen(lambda: nn.Sequential(nn.SyncBatchNorm(4), nn.Linear(4, 4), nn.SyncBatchNorm(4))),
    Specimen(lambda: nn.Sequential(nn.SyncBatchNorm(4), nn.Linear(4, 4), nn.LayerNorm(4))),
    Specimen(lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))),
)

RULE = Rule(
    "NS106",
    "partly_synchronized",
    "warning",
    "model",
    check,
    __doc__,
    thresholds={"local": LOCAL},
    causes=("train_eval_gap",),
    sick=SICK,
    healthy=HEALTHY,
)
