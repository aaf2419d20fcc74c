"""Dropout goes on in evaluation mode.

## What it finds
Calls of `torch.nn.functional.dropout` and its kin that drop with ``training=True`` although the model is in evaluation
mode: it is the default of the function, which does not know the mode of the module that calls it.

## Why it hurts
Evaluation mode answers by chance: the same input is told something else each time, and every score is that of a network
with parts of it taken away.

## Evidence
The deviation between two runs of the fixed batch in evaluation mode, over the deviation between samples.

## Prescription
Hand the mode on, `F.dropout(x, p, training=self.training)`, or use the module `nn.Dropout(p)`.

## When to ignore
When the draws are averaged on purpose (Monte Carlo dropout).

## References
PyTorch documentation, *torch.nn.functional.dropout*: "training: apply dropout if True. Default: True". Gal & Ghahramani
2016, *Dropout as a Bayesian approximation*.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.counterfactual import apart
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.terms.finding import Finding

DIFFERENT = Threshold(
    0.01,
    "chosen: a hundredth of what tells samples apart, far above the rounding of sums in another order",
    "deviations",
)


def check(case: Case) -> Iterator[Finding]:
    """At most one finding, with the modules that call it."""
    tried = case.experiment
    places = tried.dropping() if tried is not None else ()
    if tried is None or not places:
        return
    one, other = tried.answer(seed=0), tried.answer(seed=1)
    if one is None or other is None or one.shape != other.shape:
        return
    value = apart(one, other)
    if not value > DIFFERENT.value:
        return
    yield RULE.finding(
        places,
        f"In evaluation mode two runs of the same batch differ by {value:.2g} of the deviation between samples: "
        f"`F.dropout` drops in {remedies.few(places)}.",
        DIFFERENT.evidence("difference", value, [int(case.steps[-1])], [(path, value) for path in places]),
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(
                "`F.dropout(x, p, training=self.training)`, or `nn.Dropout(p)` as a module",
                "the function drops unless it is told not to",
            )
        ],
    )


class _Dropping(nn.Module):
    """Calls the function of dropout."""

    def __init__(self, told: bool) -> None:
        super().__init__()
        self.first, self.last, self.told = nn.Linear(32, 32), nn.Linear(32, 8), told

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(self.first(x).relu(), 0.3, self.training if self.told else True))


SICK = (Scene(lambda: _Dropping(False), ("",), steps=12, at_hand=True),)
HEALTHY = (Scene(lambda: _Dropping(True), steps=12, at_hand=True),)

RULE = Rule(
    "NS232",
    "dropout_in_evaluation",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"different": DIFFERENT},
    causes=("train_eval_gap",),
    sick=SICK,
    healthy=HEALTHY,
)
