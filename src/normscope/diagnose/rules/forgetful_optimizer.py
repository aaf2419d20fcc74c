"""The optimizer has forgotten the steps that it took.

## What it finds
Optimizers that count their steps (Adam and its kin) and have counted less than half of those of the run, at every
parameter: they were built anew, or their state was cleared, on the way. Seen at the end of the run, where the optimizer
is at hand.

## Why it hurts
Adam divides by an average of squared gradients. Built anew before each step, that average is one gradient, every weight
moves by the learning rate whatever its gradient is, and noise moves it as far as signal; momentum never adds up.

## Evidence
The steps that the optimizer has counted, over those of the run.

## Prescription
Build the optimizer once, before the loop.

## When to ignore
When the optimizer is built anew on purpose for a second phase of the training.

## References
Kingma & Ba 2015, *Adam*, section 3: what the correction of the bias leaves of a single step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.terms.finding import Finding

FORGOT = Threshold(0.5, "chosen: more steps are forgotten than are known", "share")
SHORT = 10
"""Steps of a run from which its optimizer's count says something."""


def check(case: Case) -> Iterator[Finding]:
    """At most one finding."""
    optimizer = case.experiment.optimizer if case.experiment is not None else None
    length = int(case.steps[-1] - case.steps[0]) + 1
    counts = [float(state["step"]) for state in optimizer.state.values() if "step" in state] if optimizer else []
    if length < SHORT or not counts or not 0 < max(counts) < FORGOT.value * length:
        return
    share = max(counts) / length
    severity = "error" if case.learns is False else "note" if case.thrives and share > 0.1 else "warning"
    yield RULE.finding(
        [""],
        f"The optimizer has counted {max(counts):.0f} steps, and the run had {length}: it was built anew, or its state "
        "was cleared.",
        FORGOT.evidence("steps", share, [int(case.steps[-1])]),
        severity=severity,
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(
                "build the optimizer once, before the loop, and keep its state",
                "its averages are made of all the steps before",
            )
        ],
    )


class _Forgetful(Adam):
    """Clears its state before each step."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        self.state.clear()
        return super().step(*args, **kwargs)


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


def _forgetful(parameters: Iterable[Tensor]) -> Optimizer:
    return _Forgetful(parameters, lr=0.02)


def _mindful(parameters: Iterable[Tensor]) -> Optimizer:
    return Adam(parameters, lr=0.01)


SICK = (Scene(_network, optimizer=_forgetful, steps=24, at_hand=True),)
HEALTHY = (Scene(_network, optimizer=_mindful, steps=24, at_hand=True),)

RULE = Rule(
    "NS236",
    "forgetful_optimizer",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"forgot": FORGOT},
    causes=("rate_too_high", "dead_units", "unrelated_targets", "drifting_distribution"),
    travels="backward",
    sick=SICK,
    healthy=HEALTHY,
)
