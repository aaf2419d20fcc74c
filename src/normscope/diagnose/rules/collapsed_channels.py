"""Channels of a norm carry nothing: their scale γ is next to zero, or what they read does not vary.

## What it finds
Norms of which more than half of the channels are shut at the end of a run: |γ| below a hundredth of the root mean
square of all, or an input that varies by less than the ε under the root. A γ that starts at zero on purpose opens with
the first steps and is no finding.

## Why it hurts
The layers behind see fewer features than the network was built with, and pay for all. Where the input's variance is
below ε, the norm does not normalize: the scale it was to take away passes through.

## Evidence
The share of shut channels at each probe.

## Prescription
Take norm parameters out of weight decay, lower the rate, draw γ at 1; prune the channels if they are to stay shut.

## When to ignore
When channels are pruned by a penalty on γ on purpose.

## References
Liu et al. 2017, *Learning efficient convolutional networks through network slimming*, section 3.
Mehta, Kim & Theobalt 2019, *On implicit filter level sparsity in convolutional neural networks*.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.diagnose.track import Track
from normscope.terms.finding import Finding
from normscope.terms.site import Site

SHUT = Threshold(
    0.5,
    "chosen: the layer works at less than half its width; Mehta et al. 2019 find shut channels also in networks that "
    "do well, so a few say nothing",
    "share",
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with every norm that is mostly shut."""
    shut: dict[Site, Track] = {}
    for norm in case.norms:
        closed, still = case.scalar(norm, "collapsed_channels"), _still(case, norm)
        worse = max((closed, still), key=lambda track: track.last if len(track) else -1.0)
        if worse.since(above=SHUT.value) is not None and case.channels(norm) > 1:
            shut[norm] = worse
    if not shut:
        return
    worst = sorted(shut, key=lambda norm: -shut[norm].last)
    track = shut[worst[0]]
    yield RULE.finding(
        tuple(dict.fromkeys(norm.path for norm in worst)),
        f"{track.last:.0%} of the channels of `{worst[0].place}` carry nothing, and more than half in {len(shut)} of "
        f"{len(case.norms)} norms.",
        SHUT.evidence("shut", track.last, track.steps, [(norm.key, shut[norm].last) for norm in worst]),
        severity="note" if case.thrives else "warning",
        since_step=track.since(above=SHUT.value),
        prescriptions=[
            remedies.advice(
                "build the optimizer from `normscope.parameter_groups(model, weight_decay)`",
                "decay pulls γ to zero, where the channel is shut",
            ),
            remedies.advice("divide the learning rate by 3 to 10, and start γ at 1: `nn.init.ones_(norm.weight)`"),
        ],
    )


def _still(case: Case, norm: Site) -> Track:
    """The share of channels whose input varies by less than the norm's ε, of norms that take them one by one."""
    eps = norm.spec.eps if norm.spec and "C" not in norm.spec.over else None
    told = case.summaries(norm.at("input"), "probe") if eps else []
    known = [(step, one.channels) for step, one in told if one.channels is not None]
    return Track.of((step for step, _ in known), (float(np.mean(channels.var < eps)) for _, channels in known))


def _network(value: float, width: int = 32) -> nn.Module:
    norm = nn.BatchNorm1d(width)
    nn.init.constant_(norm.weight[: width * 3 // 4], value)
    norm.weight.requires_grad_(value == 1.0)
    return nn.Sequential(nn.Linear(width, width), norm, nn.ReLU(), nn.Linear(width, 8))


def _silent(width: int = 32) -> nn.Module:
    first = nn.Linear(width, width, bias=False)
    nn.init.normal_(first.weight, std=1e-5)
    return nn.Sequential(first, nn.BatchNorm1d(width, affine=False), nn.ReLU(), nn.Linear(width, 8))


SICK = (
    Scene(lambda: _network(1e-4), ("1",), steps=24),
    Scene(_silent, ("1",), steps=24, optimizer=sgd(1e-6)),
)
HEALTHY = (Scene(lambda: _network(1.0), steps=24),)

RULE = Rule(
    "NS306",
    "collapsed_channels",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"shut": SHUT},
    causes=("unrelated_targets", "unread_input", "dead_units", "vanishing_gradient", "unmoved_layer"),
    symptom="shut",
    removal="scale",
    sick=SICK,
    healthy=HEALTHY,
)
