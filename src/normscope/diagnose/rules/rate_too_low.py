"""Steps are so small that the network stays where it started.

## What it finds
Runs of at least fifty steps in which a typical layer has moved by less than a fiftieth of itself in total, even if all
its steps had pointed the same way, while the loss has lost less than half of its start and is not warming up. Layers
that do not move at all are left out, unless that is all. And runs in which this is so from the middle on, because a
schedule has brought the rate down to less than a hundredth by then. A run that is still warming up is left alone until
it ends. Where no rule finds anything in a run that has hardly learned, copies are trained on the fixed batch from anew,
at the run's rate and at ten and a hundred times that.

## Why it hurts
The time is spent on a straight line that one larger step would have covered: the network is nearly the random one.

## Evidence
The sum over the run of ‖ΔW‖/‖W‖, for the median layer. With the model at hand: the loss after a step ten times as
large, which falls ten times as far.

## Prescription
Multiply the learning rate by ten, and again, until the loss is no longer straight along a step.

## When to ignore
When pretrained weights are only to be touched, or the run was broken off at its beginning.

## References
Smith 2017, *Cyclical learning rates for training neural networks*, section 3.3 (the range test).
Bengio 2012, *Practical recommendations for gradient-based training of deep architectures*, section 3.1.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.layers import Layers
from normscope.diagnose.rehearsal import LEARNT, STEPS, STUCK, rehearsed
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.diagnose.track import PERSISTENCE, Track
from normscope.terms.finding import Finding, Removal

PATH = Threshold(
    0.02,
    "chosen: a sum of ‖ΔW‖/‖W‖ bounds what the weights have moved, so 2% at most; while they move by a small share of "
    "themselves wide networks are their own linearization (Lee et al. 2019, *Wide neural networks of any depth evolve "
    "as linear models*)",
    "ratio",
)
SPENT = Threshold(
    0.01,
    "chosen: schedules by hand divide by ten at half or two thirds of a run, and the half cosine is at a half of its "
    "height by then; a hundredth is neither",
    "share",
)
SHORT = Threshold(
    50,
    "chosen: over fifty steps PATH is a step of 0.04% of the weights; shorter runs have had no time to move",
    "steps",
)
REHEARSED = Threshold(
    STUCK, "chosen: a fifth of the loss of one batch, where half is gone in a copy with one thing changed", "share"
)

RISEN = 1.5
"""A loss that has been so many times what it was at the start has risen, as in `unrelated_targets`."""


def check(case: Case) -> Iterator[Finding]:
    """One finding for the run."""
    steps = case.steps
    typical = _moving(case).typical()
    length = int(steps[-1] - steps[0]) + 1
    if length < SHORT.value or len(typical) < 4 or case.thrives or case.diverged or _warming(case):
        return
    died = _died_out(case, typical)
    path = _path(typical) if died is None else _path(typical.late())
    if not 0 <= path < PATH.value:
        return
    ratios = _moving(case)
    if died is None and case.ungraded:
        return
    worst = sorted(ratios.paths, key=lambda one: np.nan_to_num(ratios.at(one).last))
    yield RULE.finding(
        worst,
        (died or f"In {length} steps a typical layer has moved by {path:.2g} of itself at most")
        + f", and the loss has lost {case.loss.fallen or 0.0:.0%} of its start."
        + _larger(case),
        PATH.evidence("spent" if died and not _rose(case) else "path", path, typical.steps),
        severity="error" if case.learns is False else "warning",
        since_step=int((typical.late() if died else typical).steps[0]),
        prescriptions=[
            *([remedies.advice("call `scheduler.step()` once an epoch, or choose a slower schedule")] if died else []),
            remedies.advice(
                "multiply the learning rate by 10, and again until the loss falls in an even curve",
                "along steps this small the loss is a straight line",
            ),
        ],
    )


def again(case: Case) -> Iterator[Finding]:
    """Copies that begin anew stay where they are at the run's own rate, and learn at ten or a hundred times that."""
    own = rehearsed(case)
    if own is None or not 0 <= own < STUCK:
        return
    gains = {rate: rehearsed(case, rate) or 0.0 for rate in (10.0, 100.0, 1000.0)}
    best = max(gains, key=lambda rate: gains[rate])
    if not gains[best] > LEARNT:
        return
    yield RULE.finding(
        case.update_ratio.paths or [""],
        f"A copy that begins anew loses {own:.0%} of the loss of the fixed batch in {STEPS} steps at the run's rate, "
        f"and {gains[best]:.0%} at {best:g} times the rate; the run has lost {case.fallen or 0.0:.0%}.",
        REHEARSED.evidence("rehearsal", own, [int(case.steps[-1])]),
        severity="error" if case.learns is False else "warning",
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(f"multiply the learning rate by {best:g}", "at that rate a copy learns one batch by heart")
        ],
        removals=[Removal(f"{best:g} times the rate", "share of the loss that is left", 1 - own, 1 - gains[best])],
    )


def _moving(case: Case) -> Layers:
    """The update ratios of the layers that move, or of all where none does."""
    ratios = case.update_ratio
    moved = {path: track for path in ratios.paths if np.nanmax((track := ratios.at(path)).values, initial=0.0) > 0}
    return Layers.of(moved) if moved else ratios


def _died_out(case: Case, typical: Track) -> str | None:
    """In words: a schedule that has taken the rate away by the middle of a run which moved at its start."""
    rate, late = case.scalar(None, "learning_rate"), typical.late()
    if len(rate) < 4 or len(late) < PERSISTENCE or not _path(typical) >= PATH.value:
        return None
    highest, middle = float(rate.values.max()), float(rate.late().values[0])
    if not middle < SPENT.value * highest:
        return None
    return (
        f"The learning rate has fallen from {highest:.3g} to {middle:.3g} by the middle of the run; from there on a "
        f"typical layer has moved by {_path(late):.2g} of itself at most"
    )


def _rose(case: Case) -> bool:
    """Whether something went wrong while the rate was still high: the schedule is then no cause by itself."""
    return (
        float(case.loss.values.max(initial=0.0)) > RISEN * abs(float(case.loss.values[0])) if len(case.loss) else True
    )


def _path(ratio: Track) -> float:
    """The sum of the ratios over every step, those between two samples as long as their mean."""
    gaps = np.diff(ratio.steps)
    return float(np.sum(gaps * (ratio.values[1:] + ratio.values[:-1]) / 2) + ratio.values[-1])


def _warming(case: Case) -> bool:
    if case.record.state == "complete":  # all that the warm-up has led to is there
        return False
    rate = case.scalar(None, "learning_rate")
    return len(rate) > 1 and float(rate.values[-1]) > 1.5 * float(np.median(rate.values))


def _larger(case: Case) -> str:
    """What a step ten times as large would do on the fixed batch."""
    losses = case.experiment.losses((1.0, 10.0)) if case.experiment is not None else {}
    if not losses or not losses[10.0] < losses[1.0]:
        return ""
    return (
        f" On the fixed batch one step lowers the loss of {losses[0.0]:.3g} by {losses[0.0] - losses[1.0]:.2g}, a step "
        f"ten times as large by {losses[0.0] - losses[10.0]:.2g}."
    )


def _stack(width: int = 32) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8))


SICK = (Scene(_stack, ("0", "2"), optimizer=sgd(1e-5), steps=60),)
HEALTHY = (Scene(_stack, steps=60), Scene(_stack, optimizer=partial(sgd(5e-3)), steps=80))

RULE = Rule(
    "NS211",
    "rate_too_low",
    "warning",
    "record",
    check,
    __doc__,
    second=again,
    thresholds={"rehearsed": REHEARSED, "path": PATH, "spent": SPENT, "short": SHORT},
    causes=("unrelated_targets",),
    roots=("spent",),
    travels="backward",
    sick=SICK,
    healthy=HEALTHY,
)
