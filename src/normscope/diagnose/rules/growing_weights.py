"""Weights whose length does not matter grow, and the effective learning rate dies.

## What it finds
Layers right before a norm whose weights have grown more than fivefold since the start, so that the step they take at
the same learning rate has shrunk by the square of that, and is seen to be a fifth and less, while the loss no longer
falls. That the length does not matter is measured: the gradient stands upright on the weight.

## Why it hurts
A norm takes the length of the weights out, L(a·W) = L(W), so the gradient is orthogonal to W and shrinks as 1/‖W‖.
Every update can only lengthen W. Without weight decay the effective rate lr/‖W‖² falls on its own, until nothing moves.

## Evidence
The norm of each such weight over its first value, and the cosine of weight and gradient on the fixed batch.

## Prescription
Put weight decay on these weights (and only on these), scale them back to their first length, or use an optimizer that
measures steps by the weight (LARS, AdamP).

## When to ignore
When the schedule has brought the rate to zero anyway.

## References
van Laarhoven 2017, *L2 regularization versus batch and weight normalization*.
Heo et al. 2021, *AdamP: slowing down the slowdown for momentum optimizers on scale-invariant weights*.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.diagnose.track import Track
from normscope.terms.finding import Finding
from normscope.terms.site import Site

GROWN = Threshold(
    5.0,
    "chosen: the effective rate is lr/‖W‖² (van Laarhoven 2017), so fivefold leaves a twenty-fifth of it, less than a "
    "schedule's drop by ten does",
    "ratio",
)
UPRIGHT = Threshold(
    0.05,
    "Euler: for L(aW) = L(W) the cosine of W and its gradient is 0; chosen above it, for what ε and rounding leave",
    "cosine",
)
STALLED = Threshold(
    0.1, "chosen: a tenth of the loss, beyond its noise, what counts as learning in every rule here", "share"
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with the weights that have outgrown their rate."""
    if (case.loss.late().fallen or 0.0) > STALLED.value:
        return
    grown = {site: track for site in _before_norms(case) if len(track := _growth(case, site)) > 3}
    dying = [site for site in grown if grown[site].last > GROWN.value and _slowed(case, site)]
    worst = sorted(dying, key=lambda site: -grown[site].last)
    if not worst:
        return
    track = grown[worst[0]]
    yield RULE.finding(
        tuple(dict.fromkeys(site.path for site in worst)),
        f"The weights of `{worst[0].place}` are {track.last:.1f} times as long as at the start, and a norm takes the "
        f"length out again: the learning rate is worth a {track.last**2:.0f}th of what it was. So it is in "
        f"{len(worst)} of {len(grown)} layers.",
        GROWN.evidence("weight_norm", track.last, track.steps, [(site.key, grown[site].last) for site in worst]),
        severity="note" if case.thrives else "warning",
        since_step=track.since(above=GROWN.value) or int(track.steps[-1]),
        prescriptions=[
            remedies.advice(
                "put weight decay on the weights alone: `normscope.parameter_groups(model, weight_decay=1e-4)`",
                "decay balances the growth, and the effective rate settles",
            ),
            remedies.advice("divide the learning rate by 10: large steps are what lengthens the weights"),
        ],
    )


def _before_norms(case: Case) -> Iterator[Site]:
    """The layers that a norm follows, and whose weights have a gradient that stands upright on them."""
    followed = (site for site, behind in pairwise(case.sites) if site.role == "producer" and behind.role == "norm")
    for site in followed:
        for weight in case.parameters(site.path):
            cosine = case.scalar(weight, "radial_gradient")
            if weight.name == "weight" and len(cosine) and float(np.median(cosine.values)) < UPRIGHT.value:
                yield site


def _slowed(case: Case, site: Site) -> bool:
    """Whether a step now is a smaller share of the weights, by as much as they have grown."""
    ratio = case.update_ratio.at(site.path) if site.path in case.update_ratio.paths else Track.of((), ())
    return len(ratio) > 3 and ratio.last * GROWN.value < float(ratio.values[:3].max())


def _growth(case: Case, site: Site) -> Track:
    size = case.root_mean_square(next(one for one in case.parameters(site.path) if one.name == "weight"))
    return Track.of(size.steps, size.values / size.values[0]) if len(size) and size.values[0] > 0 else size


def _normed(width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


SICK = (Scene(_normed, ("0",), optimizer=sgd(10.0, 0.0), steps=40),)
HEALTHY = (Scene(_normed, steps=40), Scene(_normed, optimizer=sgd(0.3), steps=40))

RULE = Rule(
    "NS307",
    "growing_weights",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"grown": GROWN, "upright": UPRIGHT, "stalled": STALLED},
    causes=("rate_too_low",),
    travels="backward",
    sick=SICK,
    healthy=HEALTHY,
)
