"""A softmax over one unit, which is one whatever the unit says.

## What it finds
Networks that end in a softmax along an axis of length one: the output is exactly 1 for every sample, at every probe.

## Why it hurts
The output does not depend on the network. Its gradient is zero, nothing is learned, and accuracy is the share of one
class, which can look like a start.

## Evidence
The least and the greatest output on the fixed batch, at each probe: both are 1.

## Prescription
For two classes with one unit, use a sigmoid, or better no activation and `binary_cross_entropy_with_logits`; or give
the last layer one unit for each class.

## When to ignore
Never: no weight of the network changes this output.

## References
Goodfellow, Bengio & Courville 2016, *Deep Learning*, section 6.2.2 (sigmoid and softmax output units).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Data, Scene, clusters
from normscope.terms.activations import activation_named
from normscope.terms.finding import Finding

ONE = Threshold(0.0, "exp(x)/exp(x) is 1 for every x: the output has no range at all", "range")


def check(case: Case) -> Iterator[Finding]:
    """At most one finding: the last softmax."""
    site = case.answer
    function = activation_named(site.kind) if site is not None else None
    if site is None or function is None or function.name != "softmax":
        return
    low, high = (case.over(site, quantity, "probe") for quantity in ("min", "max"))
    if not len(low) or not (low.values == 1).all() or not (high.values == 1).all():
        return
    yield RULE.finding(
        [site.path],
        f"The softmax `{site.place}` at the end of the network runs over 1 unit: its output is 1 for every sample at "
        f"each of {len(low)} probes, whatever the network says.",
        ONE.evidence("range", 0.0, low.steps, [(site.key, 0.0)]),
        since_step=int(low.steps[0]),
        prescriptions=[
            remedies.advice("use `nn.Sigmoid()`, or no activation with `binary_cross_entropy_with_logits`"),
            remedies.advice("or give the last layer one unit for each class, and use `cross_entropy` on its output"),
        ],
    )


def _pairs() -> Data:
    inputs, labels = clusters()
    return inputs, (labels[:, None] % 2).float()


def _error(output: Tensor, target: Tensor) -> Tensor:
    return mse_loss(output, target)


def _network(end: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1), end)


SICK = (Scene(lambda: _network(nn.Softmax(1)), ("3",), data=_pairs, loss=_error, steps=16),)
HEALTHY = (Scene(lambda: _network(nn.Sigmoid()), data=_pairs, loss=_error),)

RULE = Rule(
    "NS219",
    "single_unit_softmax",
    "error",
    "record",
    check,
    __doc__,
    thresholds={"one": ONE},
    causes=(
        "unrelated_targets",
        "unmoved_layer",
        "vanishing_gradient",
        "poor_initialization",
        "rate_too_low",
        "rank_collapse",
    ),
    sick=SICK,
    healthy=HEALTHY,
)
