"""Dropout drowns what the network has to say.

## What it finds
Networks with dropout whose output in training mode differs more from one draw of the dropout to the next than from one
sample to the next, by more than three times in deviations, in a run that has not lost half of its loss.

## Why it hurts
The loss of each step compares the targets with an output that is mostly chance. The gradient is as much noise, and the
best that the network can learn is to say little: the mean of the targets.

## Evidence
The deviation of the fixed batch's outputs over eight draws, root mean square over samples and outputs, over the
deviation between samples of their mean (less what the draws leave in it). The same with dropout taken out.

## Prescription
Take a smaller rate: 0.1 to 0.5 in hidden layers, 0.2 at most on the input.

## When to ignore
At the start of a training with a schedule of dropout.

## References
Srivastava et al. 2014, *Dropout: a simple way to prevent neural networks from overfitting*, section 7.3 and appendix A:
0.5 to 0.8 of hidden units are kept, 0.8 of inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.counterfactual import Experiment
from normscope.diagnose.rehearsal import LEARNT, rehearsed
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.terms.finding import Finding, Removal

DROWNED = Threshold(
    3.0,
    "chosen: at three deviations of noise for one of signal nine tenths of the output's variance are noise",
    "ratio",
)
FREED = Threshold(0.5, "chosen: without dropout a copy learns twice as much of one batch as with it", "share")
DRAWS = 8
OFTEN = 0.5
"""Rates above those in use (Srivastava et al. 2014 keep half of the hidden units at least)."""


def check(case: Case) -> Iterator[Finding]:
    """At most one finding."""
    if case.experiment is None or case.thrives or case.diverged:
        return
    modules = case.experiment.model.named_modules()
    drops = {path: float(one.p) for path, one in modules if isinstance(one, nn.modules.dropout._DropoutNd) and one.p}
    if not drops or not max(drops.values()) > OFTEN or (value := _noise(case.experiment)) is None:
        return
    alone = not case.normalizes_over_batch  # dropout before a norm over the batch has rules of its own
    freed = _freed(case) if alone and not value > DROWNED.value else None
    if freed is None and not value > DROWNED.value:
        return
    worst = sorted(drops, key=lambda path: -drops[path])
    told = f" A short training leaves {freed.before:.0%} of the loss, without it {freed.after:.0%}." if freed else ""
    yield RULE.finding(
        worst,
        f"From one draw of the dropout to the next the outputs differ {value:.2g} times as much as from one sample to "
        f"the next; `{worst[0]}` takes {drops[worst[0]]:.0%} away." + told,
        DROWNED.evidence("noise", value, [int(case.steps[0])], [(path, drops[path]) for path in worst]),
        severity="error" if case.learns is False else "warning",
        removals=[freed] if freed else [],
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(
                f"take a smaller rate in {remedies.few(worst)}: `nn.Dropout(0.2)`",
                "the output is then more signal than chance",
            )
        ],
    )


def _freed(case: Case) -> Removal | None:
    """What copies that begin anew learn of the fixed batch with and without dropout, where it is the dropout."""
    own, free = rehearsed(case), rehearsed(case, change=_keep)
    if own is None or free is None or not (free > LEARNT and own < FREED.value * free):
        return None
    return Removal("dropout taken out", "share of the loss that is left", 1 - own, 1 - free)


def _keep(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


def _noise(tried: Experiment) -> float | None:
    """Noise of the draws over signal between samples, in deviations."""
    given = [tried.answer(training=True, seed=seed) for seed in range(DRAWS)]
    known = [one.double() for one in given if one is not None and len(one) > 1]
    if len(known) < DRAWS:
        return None
    told = torch.stack(known)
    noise = told.var(0).mean()
    signal = told.mean(0).var(0).mean() - noise / DRAWS
    return float((noise / signal.clamp_min(noise * 1e-4)).sqrt()) if float(noise) > 0 else None


def _stack(rate: float) -> nn.Module:
    layers = [layer for _ in range(3) for layer in (nn.Linear(32, 32), nn.ReLU(), nn.Dropout(rate))]
    return nn.Sequential(*layers, nn.Linear(32, 8))


SICK = (Scene(partial(_stack, 0.95), ("2",), optimizer=sgd(0.05), at_hand=True),)
HEALTHY = (Scene(partial(_stack, 0.2), optimizer=sgd(0.1), steps=60, at_hand=True),)

RULE = Rule(
    "NS230",
    "excessive_dropout",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"drowned": DROWNED, "freed": FREED},
    causes=("dead_units", "rank_collapse", "rate_too_low", "poor_initialization", "unrelated_targets"),
    sick=SICK,
    healthy=HEALTHY,
)
