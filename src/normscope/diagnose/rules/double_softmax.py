"""A softmax is taken of what a softmax has already made.

## What it finds
Networks that end in a softmax whose output goes into a cross-entropy that takes logits, and so makes a softmax of it
once more. Two signs together say so: the gradient at the softmax's output adds up to zero over the classes, as only a
function that does not see a common constant has it; and every loss lies in the narrow band that probabilities, taken
for logits, allow: from log(e + C − 1) − 1 to log(e + C − 1) for C classes.

## Why it hurts
Probabilities differ by one at most, so the second softmax can never be sure: with ten classes the loss stays above
1.46. The gradient goes through both and fades as the first becomes sure. Networks learn, but slowly and badly.

## Evidence
The mean of the gradient at the output over its root mean square, and the range of the losses.

## Prescription
Take the softmax out of the model, and apply it where probabilities are read.

## When to ignore
Never for training; a temperature far from one would leave the band, and is not found.

## References
PyTorch documentation, *CrossEntropyLoss*: "the input is expected to contain the unnormalized logits for each class".
"""

from __future__ import annotations

from collections.abc import Iterator
from math import e, log

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.terms.activations import activation_named
from normscope.terms.finding import Finding

BALANCED = Threshold(
    1e-3,
    "the gradient of cross-entropy is softmax − target, which adds up to 0 but for rounding; that of −log p is −1/p at "
    "one class of C, whose mean over root mean square is 1/√C: 0.03 at a thousand classes",
    "ratio",
)


def check(case: Case) -> Iterator[Finding]:
    """At most one finding: the last softmax."""
    site = case.answer
    function = activation_named(site.kind) if site is not None else None
    if site is None or function is None or function.name != "softmax" or len(case.loss) < 6 or case.diverged:
        return
    classes = case.channels(site)
    balance = case.balance(site)
    if classes < 2 or len(balance) < 2 or not float(np.median(balance.values)) < BALANCED.value:
        return
    high = log(e + classes - 1)
    if not (case.loss.values.min() > high - 1.01 and case.loss.values.max() < high + 0.01):
        return
    value = float(np.median(balance.values))
    yield RULE.finding(
        [site.path],
        f"`{site.place}` is a softmax, and its gradient adds up to zero over the {classes} classes ({value:.2g} of its "
        f"size): another softmax reads it. The loss cannot fall below {high - 1:.2f}; it is at {case.loss.last:.2f}.",
        BALANCED.evidence("balance", value, balance.steps, [(site.key, value)]),
        since_step=int(balance.steps[0]),
        prescriptions=[
            remedies.advice(
                f"take the softmax `{site.place}` out of the model: `cross_entropy` takes logits",
                "it computes the softmax itself, in a form that does not lose precision",
            )
        ],
    )


def _network(softmax: bool) -> nn.Module:
    end = [nn.Softmax(-1)] if softmax else []
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8), *end)


def _likelihood(output: Tensor, target: Tensor) -> Tensor:
    return nll_loss((output + 1e-9).log(), target)


SICK = (Scene(lambda: _network(True), ("3",), optimizer=sgd(0.5)),)
HEALTHY = (
    Scene(lambda: _network(False)),
    Scene(lambda: _network(True), loss=_likelihood),
)

RULE = Rule(
    "NS218",
    "double_softmax",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"balanced": BALANCED},
    causes=("unrelated_targets", "rate_too_low", "vanishing_gradient", "restricted_output"),
    sick=SICK,
    healthy=HEALTHY,
)
