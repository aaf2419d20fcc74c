"""The first layers get almost nothing of the gradient that the last ones get.

## What it finds
A beginning of the network whose every layer counts for less than a four-hundredth of what a typical layer behind it
counts for. A layer counts by ‖W‖·‖∂L/∂W‖, the most that the loss moves for a relative change of its weights: this is
the same however scale is divided between neighbouring layers, which a bare gradient norm is not. Frozen layers have no
gradient and are left out, and so are those that are cut off. A silent residual branch does not make a finding, because
its neighbours are fed by the skip connection; nor does a narrow tail of the network, because the comparison is with the
typical layer. With the model at hand, also the steps of a sequence: those in which samples differ, of which the output
of a recurrence feels nothing.

## Why it hurts
Those layers stay where the random start put them, and the layers behind have to work with what random features hand
on. With adaptive optimizers the small gradients are scaled up again, and with them their noise.

## Evidence
The shares along depth at each sampled step of training; they must stay below the threshold to the last.

## Prescription
Normalize what the activations read, which keeps the slope of every layer near its best; draw the weights at the gain
of the activation; replace sigmoids; add skip connections.

## When to ignore
When the first layers are pretrained and meant to stay.

## References
Hochreiter 1991; Bengio, Simard & Frasconi 1994, *Learning long-term dependencies with gradient descent is difficult*.
Glorot & Bengio 2010, section 4. Schoenholz et al. 2017, *Deep Information Propagation*.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.layers import starved_layers
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.diagnose.wiring import heard
from normscope.terms.finding import Evidence, Finding, Prescription, Severity

STARVED = Threshold(
    float(np.exp(-6)),
    "six e-folds: networks train up to a depth of about six of the scales over which a signal dies (the experiments "
    "of Schoenholz et al. 2017); no sound run of benchmarks/faults, of 213, is flagged",
    "ratio",
)
COMPENSATED = Threshold(
    0.1,
    "chosen: Adam divides each gradient by its own size (Kingma & Ba 2015, section 2.1); first layers that then move a "
    "tenth as far as the others are no longer starved",
    "ratio",
)
FELT = Threshold(0.1, "chosen: steps in which samples differ a tenth as much as where they differ most", "share")


def check(case: Case) -> Iterator[Finding]:
    """One finding with the starved beginning of the network."""
    share = case.sensitivity.starvation()
    since = share.since(below=STARVED.value)
    if since is None:
        yield from _through_time(case)
        return
    column = case.sensitivity.values[:, case.sensitivity.steps == share.steps[-1]][:, 0]
    count = starved_layers(column, STARVED.value)
    layers = [path for path, value in zip(case.sensitivity.paths[:count], column) if value > 0]  # at 0 they are cut off
    if not layers:
        return
    severity = _severity(case, layers)
    if severity is None:
        return
    typical = float(np.nanmedian(column[count:]))
    reach = float(np.nanmax(column[:count])) / typical
    worst = sorted(layers, key=lambda path: column[case.sensitivity.paths.index(path)])
    yield RULE.finding(
        worst,
        f"The first {len(layers)} of {len(case.sensitivity)} layers, up to `{layers[-1]}`, get at most {reach:.2g} of "
        f"the relative gradient of a typical layer behind them, since step {since}.",
        Evidence(
            "relative_gradient",
            share.last,
            STARVED.value,
            tuple(int(step) for step in share.steps),
            STARVED.unit,
            STARVED.source,
            tuple((path, float(column[case.sensitivity.paths.index(path)] / typical)) for path in worst),
        ),
        severity=severity,
        since_step=since,
        prescriptions=list(_prescriptions(case)),
    )


def _through_time(case: Case) -> Iterator[Finding]:
    """Steps of a sequence in which samples differ, and which the output of a recurrent layer hardly feels."""
    recurrent = [site for site in case.producers if site.kind.startswith(("LSTM", "GRU", "RNN"))]
    if not recurrent or case.experiment is None or case.thrives:
        return
    told = heard(case.experiment)
    if told is None or told[0].ndim != 3:
        return
    entry, slope = (one.double() for one in told)
    differs = entry.std(0).square().sum(-1).sqrt()  # of each step, between samples
    felt = (slope.square().mean((0, 2)).sqrt() / slope.square().mean((0, 2)).sqrt().max().clamp_min(1e-300)).tolist()
    telling = [step for step, one in enumerate(differs.tolist()) if one > FELT.value * float(differs.max())]
    reach = max((felt[step] for step in telling), default=1.0)
    if not reach < STARVED.value or not max(felt) > 0:
        return
    layer = recurrent[0]
    yield RULE.finding(
        [layer.path],
        f"Samples differ in {len(telling)} of {len(felt)} steps of the sequence, up to step {telling[-1]}, and what "
        f"`{layer.place}` gives moves with those at most {reach:.2g} times as much as with the step that counts most: "
        "signal and gradient are gone on their way through time.",
        STARVED.evidence("steps", reach, [int(case.steps[-1])], [(layer.key, reach)]),
        severity="error" if case.learns is False else "warning",
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(
                "take the output at the last step that says something (`nn.utils.rnn.pack_padded_sequence`), or a mean "
                "or maximum over the steps",
                "a recurrence multiplies at every step, and forgets",
            )
        ],
    )


def _severity(case: Case, layers: list[str]) -> Severity | None:
    """None when the optimizer makes up for it and the loss falls."""
    if case.learns is False:
        return "error"
    return None if case.learns and _compensated(case, layers) else "warning"


def _compensated(case: Case, layers: list[str]) -> bool:
    """Whether the optimizer moves the starved layers by the same share of themselves as the others."""
    ratios = case.update_ratio
    first = [ratios.at(path).last for path in ratios.paths if path in layers]
    rest = [ratios.at(path).last for path in ratios.paths if path not in layers]
    return bool(first and rest) and float(np.median(first)) > COMPENSATED.value * float(np.median(rest))


def _prescriptions(case: Case) -> Iterator[Prescription]:
    yield from remedies.cures(case, case.hidden_activations)
    yield remedies.advice("add skip connections around groups of layers", "a sum hands the gradient on undiminished")


def _sigmoid_stack(depth: int, width: int = 32, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), *([nn.BatchNorm1d(width)] if norm else []), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


class _Residual(nn.Module):
    """Eight blocks whose branches start with a scale of zero, as zero-initialized residual networks do."""

    def __init__(self, width: int = 32, blocks: int = 8) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.branches = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Linear(width, width)) for _ in range(blocks))
        self.scales = nn.Parameter(torch.zeros(blocks))
        self.head = nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for branch, scale in zip(self.branches, self.scales):
            x = x + scale * branch(x)
        return self.head(x)


def _frozen_front() -> nn.Module:
    model = _sigmoid_stack(2)
    for parameter in model.get_submodule("0").parameters():
        parameter.requires_grad_(False)
    return model


SICK = (
    Scene(partial(_sigmoid_stack, 8), ("0", "2")),
    Scene(partial(_sigmoid_stack, 12), ("0", "2", "4"), optimizer=sgd(0.5)),
)
HEALTHY = (
    Scene(partial(_sigmoid_stack, 8, norm=True)),
    Scene(_Residual),
    Scene(_frozen_front),
)

RULE = Rule(
    "NS201",
    "vanishing_gradient",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"starved": STARVED, "compensated": COMPENSATED, "felt": FELT},
    causes=("unrelated_targets", "rate_too_low", "uneven_updates", "unread_input"),
    roots=("steps",),
    travels="backward",
    symptom="starved",
    shown_by=("relative_gradient",),
    removal="scales",
    sick=SICK,
    healthy=HEALTHY,
)
