"""Batches are too small for the statistics that a normalization takes from them.

## What it finds
Normalizations whose training statistics are taken over the batch, when a batch holds so few samples that the mean and
variance of a channel are mostly chance. An error where a channel has a single value (nothing can be normalized, and
torch raises), a warning up to 4 samples, a note up to 8. Where the batch size was not given and the example stands in
for it, a note at most: an example shows shapes, and need not be a training batch.

## Why it hurts
The mean of n samples is off by 1/√n of a deviation, their standard deviation by 1/√(2n). With 2 samples that is
0.7 and half of a deviation: every sample is normalized by its chance neighbour, gradients point elsewhere from batch to
batch, and at inference the running statistics describe another network than the one that was trained. Many positions
per sample do not make up for it, for they are correlated.

## Evidence
The batch size (given, or that of the example) times the number of positions behind a channel (when an example shows
the shapes).

## Prescription
Replace batch normalization by a normalization of each sample: group normalization after convolutions, layer
normalization after linear layers. Where batches are small because many devices share the work, synchronize the
statistics instead (`nn.SyncBatchNorm`).

## When to ignore
When the statistics are frozen (fine-tuning with the normalization in evaluation mode).

## References
Wu & He 2018, *Group Normalization*, table 2: ResNet-50 on ImageNet errs on 23.6, 23.7, 24.8, 27.3 and 34.7% with batch
normalization at 32, 16, 8, 4 and 2 images a worker, and on 24.0 to 24.2% with group normalization at any of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from normscope.diagnose.blueprint import Blueprint, Norm
from normscope.diagnose.remedies import replaced
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding, Prescription

_TABLE = "Wu & He 2018, table 2"
NOISY = Threshold(8, f"{_TABLE}: at 8 images batch normalization falls behind (24.8% against 24.0%)", "samples")
HARMFUL = Threshold(4, f"{_TABLE}: at 4 images it loses 3 points (27.3% against 24.2%), at 2 ten", "samples")
UNDEFINED = Threshold(1, "the variance of one value is zero; torch raises in training", "values per channel")


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding with every normalization over batches that are too small."""
    samples = blueprint.samples
    norms = [norm for norm in blueprint.norms if _measures_batch(norm)]
    if not norms or samples is None or samples > NOISY.value:
        return
    single = [norm for norm in norms if samples * _positions(norm) <= UNDEFINED.value]
    noise = f"the mean of a channel is off by {samples**-0.5:.0%} of its deviation by chance"
    if single:
        severity, threshold = "error", UNDEFINED
        noise = f"a channel has a single value at {len(single)} of {len(norms)}, which has no variance"
    elif samples <= HARMFUL.value:
        severity, threshold = "warning", HARMFUL
    else:
        severity, threshold = "note", NOISY
    of = f"batches of {samples}"
    if blueprint.batch_size is None:  # an example shows shapes; it need not be a training batch
        severity, of = "note", f"batches of {samples}, if training batches are like the example"
    take = "1 normalization takes its" if len(norms) == 1 else f"{len(norms)} normalizations take their"
    yield RULE.finding(
        [norm.path for norm in norms],
        f"{take} statistics from {of}: {noise}.",
        Evidence("batch_size", samples, threshold.value, unit=threshold.unit, source=threshold.source),
        severity=severity,
        prescriptions=list(_prescriptions(norms)),
    )


def _measures_batch(norm: Norm) -> bool:
    """Whether training statistics run over this device's batch, and are taken at all."""
    frozen = not norm.module.training and all(not one.requires_grad for one in norm.module.parameters())
    return "N" in norm.spec.over and norm.spec.train_from in ("batch", "ghost", "renormalized") and not frozen


def _positions(norm: Norm) -> int:
    """Positions behind a channel; where no example shows them, one for the norm of vectors and some for others."""
    return norm.positions or (1 if isinstance(norm.module, nn.BatchNorm1d) else 2)


def _prescriptions(norms: list[Norm]) -> Iterator[Prescription]:
    vectors = [norm for norm in norms if isinstance(norm.module, nn.BatchNorm1d)]
    maps = [norm for norm in norms if norm not in vectors]
    for some, to, typed in (
        (maps, "GroupNorm", "nn.GroupNorm(32, channels)"),
        (vectors, "LayerNorm", "nn.LayerNorm(features)"),
    ):
        if some:
            sites = tuple(norm.path for norm in some)
            widths = [int(getattr(norm.module, "num_features", 0)) for norm in some]
            yield Prescription(
                "convert",
                sites,
                {"to": to},
                words=replaced((type(norm.module).__name__ for norm in some), sites, typed, widths),
                reason="its statistics come from each sample alone, so the batch size does not matter",
            )
    yield Prescription("", words="use a larger batch, or `nn.SyncBatchNorm` where several devices share it")


def _images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


def _vectors() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


SICK = (
    Specimen(_images, ("1",), {"batch_size": 2}),
    Specimen(_vectors, ("1",), {"batch_size": 1}),
    Specimen(_vectors, ("1",), {"example": torch.zeros(4, 4)}),
)
HEALTHY = (
    Specimen(_images, known={"batch_size": 32}),
    Specimen(lambda: nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8)), known={"batch_size": 2}),
    Specimen(_vectors),
)

RULE = Rule(
    "NS102",
    "batch_too_small",
    "warning",
    "model",
    check,
    __doc__,
    thresholds={"noisy": NOISY, "harmful": HARMFUL, "undefined": UNDEFINED},
    causes=("unrelated_targets", "stale_running_stats", "train_eval_gap", "noisy_batch_statistics", "growing_weights"),
    sick=SICK,
    healthy=HEALTHY,
)
