"""The model keeps something from one call to the next.

## What it finds
Models that in evaluation mode give another answer when they are called a second time with the same batch and the same
random state: a hidden state, a cache or a counter in an attribute goes on from call to call. What dropout does in
evaluation mode has a rule of its own.

## Why it hurts
The answer for a batch depends on which batch came before it: training learns from mixtures of unrelated samples, and
no evaluation can be repeated.

## Evidence
The difference between the outputs of the first and the second call, in deviations between samples.

## Prescription
Begin every call with a fresh state, or hand it in and out as an argument.

## When to ignore
When pieces of one sequence follow one another in order, and the state is reset where a sequence ends.

## References
Pascanu, Mikolov & Bengio 2013, *On the difficulty of training recurrent neural networks*, section 1.1: the state of a
recurrent network belongs to one sequence.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.counterfactual import apart
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.diagnose.wiring import twice
from normscope.terms.finding import Finding

DIFFERENT = Threshold(
    0.01,
    "chosen: a hundredth of what tells samples apart, far above the rounding of sums in another order",
    "deviations",
)


def check(case: Case) -> Iterator[Finding]:
    """At most one finding."""
    tried = case.experiment
    told = twice(tried) if tried is not None and not tried.dropping() else None
    if told is None:
        return
    value = apart(*(each.double() for each in told))
    if not DIFFERENT.value < value < float("inf"):
        return
    first = case.sites[0].path if case.sites else ""
    yield RULE.finding(
        [first],
        f"Called twice with the same batch in evaluation mode, the model gives answers that differ by {value:.2g} of "
        "the deviation between samples: it keeps a state from one call to the next.",
        DIFFERENT.evidence("difference", value, [int(case.steps[-1])], [(first, value)]),
        severity="error" if case.learns is False else "warning",
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(
                "begin each call of `forward` with a fresh state, or hand the state in and out as an argument",
                "what one batch left behind says nothing of the next",
            )
        ],
    )


class _Carrying(nn.Module):
    """Adds to each call what is left of the last one."""

    def __init__(self, carries: bool) -> None:
        super().__init__()
        self.first, self.last, self.carries = nn.Linear(32, 32), nn.Linear(32, 8), carries
        self.state = torch.zeros(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if self.carries:
            x = x + self.state
            self.state = 0.9 * x.detach().mean(0)
        return self.last(x)


SICK = (Scene(lambda: _Carrying(True), ("first",), steps=12, at_hand=True),)
HEALTHY = (Scene(lambda: _Carrying(False), steps=12, at_hand=True),)

RULE = Rule(
    "NS235",
    "kept_state",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"different": DIFFERENT},
    causes=("mixed_samples", "unrelated_targets", "train_eval_gap"),
    sick=SICK,
    healthy=HEALTHY,
)
