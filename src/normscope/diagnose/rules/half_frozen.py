"""A normalization is frozen by half: its parameters or its statistics, not both.

## What it finds
Batch normalization whose γ and β do not learn while its running statistics still move (a warning), and, in a model that
trains, one in evaluation mode whose γ and β do learn (a note). Where its running statistics never saw a batch, and are
0 and 1 after a training, it has normalized nothing (an error).

## Why it hurts
Freezing a backbone with `requires_grad_(False)` stops γ and β, not the statistics: in training mode the layer still
normalizes by the batch, and its running statistics drift to the new data. The frozen layers then compute another
function than the one that was to be kept, and another one in training than in use.

## Evidence
How many normalizations are frozen by half.

## Prescription
`normscope.freeze(model, where=…)` freezes both, and survives `model.train()`.

## When to ignore
When only the statistics are meant to adapt to new data, or only γ and β (with statistics from a large data set).

## References
torch.nn.BatchNorm2d: running statistics are buffers, which `requires_grad` does not reach. Wu & Johnson 2021,
*Rethinking "Batch" in BatchNorm* (frozen batch normalization uses fixed statistics).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normscope.diagnose.blueprint import Blueprint, Norm
from normscope.diagnose.remedies import few
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.specimen import Specimen
from normscope.terms.finding import Evidence, Finding, Prescription, Severity

HALF = Threshold(
    0,
    "definition: what is frozen goes on computing the same function; one that is frozen by half is one too many",
    "normalizations",
)


def check(blueprint: Blueprint) -> Iterator[Finding]:
    """One finding for live statistics under frozen parameters, one for the reverse."""
    norms = [norm for norm in blueprint.norms if _keeps(norm) and any(True for _ in norm.module.parameters())]
    training = blueprint.model.training
    live = tuple(norm.path for norm in norms if norm.module.training == training and not _learns(norm))
    blank = tuple(norm.path for norm in norms if blueprint.trained and _learned(norm) and _blank(norm))
    still = tuple(norm.path for norm in norms if training and not norm.module.training and _learns(norm))
    halves: tuple[tuple[tuple[str, ...], str, Severity], ...] = (
        (live, "frozen parameters and running statistics that still move", "warning"),
        (
            blank,
            "running statistics that never saw a batch, and so normalized nothing while its parameters learned",
            "error",
        ),
        (
            tuple(path for path in still if path not in blank),
            "frozen statistics and parameters that still learn",
            "note",
        ),
    )
    for sites, what, severity in halves:
        if sites:
            yield RULE.finding(
                sites,
                f"{len(sites)} batch normalization{'s have' if len(sites) > 1 else ' has'} {what}.",
                Evidence("half_frozen", len(sites), HALF.value, unit=HALF.unit, source=HALF.source),
                severity=severity,
                prescriptions=[
                    Prescription(
                        "freeze",
                        sites,
                        words=f"freeze {few(sites)} whole: `normscope.freeze(model, where=…)`",
                        reason="parameters and statistics then stay, also after `model.train()`",
                    )
                ],
            )


def _keeps(norm: Norm) -> bool:
    return "N" in norm.spec.over and norm.spec.infer_from == "running" and norm.spec.train_from != "given"


def _blank(norm: Norm) -> bool:
    """Whether no batch has reached the running statistics: the count is zero, and all is as it was made."""
    mean, var, count = (norm.module._buffers.get(one) for one in ("running_mean", "running_var", "num_batches_tracked"))
    if mean is None or var is None or count is None:
        return False
    return int(count) == 0 and not bool(mean.any()) and bool((var == 1).all())


def _learned(norm: Norm) -> bool:
    """Whether γ or β is no longer what a norm begins with: the model at hand may be a fresh one, beside a record."""
    gamma, beta = norm.module._parameters.get("weight"), norm.module._parameters.get("bias")
    moved = (gamma is not None and not bool((gamma == 1).all())) or (beta is not None and bool(beta.any()))
    return moved and _learns(norm)


def _learns(norm: Norm) -> bool:
    return any(one.requires_grad for one in norm.module.parameters())


def _model(frozen: bool, evaluated: bool) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))
    model[1].requires_grad_(not frozen).train(not evaluated)
    return model


SICK = (
    Specimen(lambda: _model(frozen=True, evaluated=False), ("1",)),
    Specimen(lambda: _model(frozen=False, evaluated=True), ("1",)),
)
HEALTHY = (
    Specimen(lambda: _model(frozen=False, evaluated=False)),
    Specimen(lambda: _model(frozen=True, evaluated=True)),
    Specimen(lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).requires_grad_(False)),
    Specimen(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))),
)

RULE = Rule(
    "NS113",
    "half_frozen",
    "warning",
    "model",
    check,
    __doc__,
    thresholds={"half": HALF},
    causes=("train_eval_gap",),
    sick=SICK,
    healthy=HEALTHY,
)
