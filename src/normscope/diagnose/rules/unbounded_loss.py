"""The loss has no least value: the network lowers it for ever by making its output larger.

## What it finds
Runs whose loss has fallen below zero by more than ten times what it started at, while the gradient that the loss hands
to the last layer stayed as large as at the start, to a hundredth: the loss is a straight line of the output. So it is
with `nll_loss` of raw logits, which it takes for logarithms of probabilities. Losses that fall below zero faster and
faster, which are below zero for outputs of zero already, or a thousand times as far. And optimizers that were told to
maximize, and make the loss go up.

## Why it hurts
A loss that tells right from wrong flattens as the answers become right. This one asks for larger outputs for ever, of
right and wrong answers alike; the loss looks better and better, and the network gets no better.

## Evidence
The loss over the size of its start; the size of the gradient at the last layer's output, at the end over the start.

## Prescription
Put `nn.LogSoftmax(dim=1)` before `nll_loss`, or take `cross_entropy`, which does both. Look at the sign of the loss.

## When to ignore
Critics of a Wasserstein distance, whose loss is linear on purpose and whose slope is bounded otherwise.

## References
PyTorch documentation, *torch.nn.NLLLoss*: "The input given through a forward call is expected to contain
log-probabilities of each class."
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn
from torch.nn.functional import nll_loss

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.terms.finding import Finding
from normscope.terms.site import Site

BELOW = Threshold(
    10.0, "chosen: ten times the start below zero; a loss with a least value comes to rest near it", "ratio"
)
EVEN = Threshold(
    0.01,
    "chosen: the slope of a straight line does not change, so what is left is float32's rounding; a hundredth of it "
    "is far more, and far less than learning takes from the slope of a curved loss",
    "ratio",
)
BOTTOMLESS = Threshold(1e3, "chosen: a hundred times as far as BELOW, whatever the slope does", "ratio")


def check(case: Case) -> Iterator[Finding]:
    """At most one finding for the run."""
    loss, last = case.loss, case.producers[-1] if case.producers else None
    if last is None or len(loss) < 6:
        return
    if _climbs(case):
        yield _climbing(case, last)
        return
    start, end = float(np.median(np.abs(loss.values[:3]))), float(np.median(loss.values[-3:]))
    slope = case.root_mean_square(last.at("gradient"))
    if len(slope) < 3 or not slope.values[0] > 0 or not start > 0 or not end < -BELOW.value * start:
        return
    change = float(np.ptp(slope.values) / slope.values[0])
    nothing = case.experiment.loss_of_nothing() if case.experiment is not None else None
    downhill = nothing is not None and nothing < 0 and float(loss.values[0]) < 0  # an error with a minus before it
    if not change < EVEN.value and not (downhill or end < -BOTTOMLESS.value * start):
        return
    yield RULE.finding(
        [last.path],
        f"The loss fell from {loss.values[0]:.3g} to {end:.3g}, and its gradient at `{last.place}` changed by "
        f"{change:.1g} of itself: the loss "
        + ("is a straight line of the output," if change < EVEN.value else "falls ever faster,")
        + " without a least value.",
        BELOW.evidence("loss", -end / start, loss.steps, [(last.key, -end / start)]),
        since_step=int(slope.steps[0]),
        prescriptions=[
            remedies.advice(
                "use `nn.functional.cross_entropy(output, target)` in place of `nll_loss`",
                "`nll_loss` takes logarithms of probabilities, and cross-entropy makes them of the output",
            ),
            remedies.advice("or end the network in `nn.LogSoftmax(dim=1)`"),
        ]
        if change < EVEN.value
        else [
            remedies.advice(
                "look at the sign of the loss: what is to be minimized has a least value",
                "the steps go down, and the error with a minus before it goes up",
            )
        ],
    )


def _climbs(case: Case) -> bool:
    """Whether the optimizer was told to maximize, and does."""
    optimizer = case.experiment.optimizer if case.experiment is not None else None
    if optimizer is None or not any(group.get("maximize") for group in optimizer.param_groups):
        return False
    early, late = case.loss.values[:3], case.loss.values[-max(3, len(case.loss) // 10) :]
    return bool(np.median(late) > np.median(early))


def _climbing(case: Case, last: Site) -> Finding:
    start, end = float(case.loss.values[0]), case.loss.last
    value = (end - start) / max(abs(start), 1e-30)
    return RULE.finding(
        [last.path],
        f"The optimizer was built with `maximize=True`, and the loss goes up: from {start:.3g} to {end:.3g}.",
        BELOW.evidence("loss", value, case.loss.steps, [(last.key, value)]),
        since_step=int(case.steps[0]),
        prescriptions=[remedies.advice("build the optimizer without `maximize=True`", "a loss is to be minimized")],
    )


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


SICK = (Scene(_network, ("2",), loss=nll_loss, optimizer=sgd(0.05), steps=60),)
HEALTHY = (
    Scene(_network, steps=60),
    Scene(lambda: nn.Sequential(_network(), nn.LogSoftmax(1)), loss=nll_loss, steps=60),
)

RULE = Rule(
    "NS225",
    "unbounded_loss",
    "error",
    "record",
    check,
    __doc__,
    thresholds={"below": BELOW, "even": EVEN, "bottomless": BOTTOMLESS},
    causes=(
        "unrelated_targets",
        *("exploding_gradient", "rate_too_high", "drifting_distribution", "dead_units", "uneven_updates"),
        *("growing_weights", "rank_collapse", "nonfinite_values", "saturated_activation"),
    ),
    travels="backward",
    sick=SICK,
    healthy=HEALTHY,
)
