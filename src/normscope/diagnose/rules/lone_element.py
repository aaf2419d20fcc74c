"""A norm takes its statistics over one element, whose deviation from its own mean is zero.

## What it finds
Norms of each sample (group, layer, instance norm) whose output on the fixed batch is the same for every sample, but
for rounding, although their input is not: there is one element in each group, as in group norm with as many groups as
channels over vectors, or instance norm over maps of one position.

## Why it hurts
x − mean(x) is zero for one element, so the output is β, whatever came in. Nothing passes the norm, forward or backward;
the layers before it never learn.

## Evidence
The deviation between samples of the norm's input and of its output.

## Prescription
Use fewer groups (layer norm for vectors), or normalize before the map has shrunk to one position.

## When to ignore
Never: no weight before the norm changes its output.

## References
Wu & He 2018, *Group Normalization*, section 3. Ulyanov, Vedaldi & Lempitsky 2016, *Instance Normalization*.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.stats.moments import Moments
from normscope.terms.finding import Finding, Prescription
from normscope.terms.site import Site

NOTHING = Threshold(
    1e-3,
    "x − mean(x) = 0 for one element; float32 leaves 2⁻²⁴ of x, and 1/√ε makes at most 2e-5 of that at ε = 1e-5, where "
    "a norm over two elements already gives deviations of 1",
    "deviations",
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with every norm that lets nothing through."""
    mute = [norm for norm in case.norms if _alone(case, norm) and _mute(case, norm)]
    if not mute:
        return
    steps = [step for step, _ in case.summaries(mute[0], "probe")]
    sites = tuple(dict.fromkeys(norm.path for norm in mute))
    yield RULE.finding(
        sites,
        f"`{mute[0].place}` gives the same for every sample at each of {len(steps)} probes, as a norm over one element "
        f"does; so do {len(mute)} of {len(case.norms)} norms.",
        NOTHING.evidence("variation", 0.0, steps, [(norm.key, 0.0) for norm in mute]),
        since_step=int(steps[0]),
        prescriptions=[
            remedies.advice(f"take {remedies.few(sites)} out", "a norm over one element gives the same for every input")
        ]
        if all(case.channels(norm) == 1 for norm in mute)
        else [
            Prescription(
                "convert",
                sites,
                {"to": "LayerNorm"},
                words=f"use `nn.LayerNorm(features)` (of maps: fewer groups) in {remedies.few(sites)}",
                reason="a mean over more than one element leaves something to learn from",
            )
        ],
    )


def _alone(case: Case, norm: Site) -> bool:
    """Whether one element can stand alone: not where a group holds several channels."""
    if norm.spec is None or "N" in norm.spec.over:
        return False
    return "C" not in norm.spec.over or case.channels(norm) <= norm.spec.groups


def _mute(case: Case, norm: Site) -> bool:
    read, made = (dict(case.summaries(one, "probe")) for one in (norm.at("input"), norm))
    told = [(read[step].channels, made[step].channels) for step in made if step in read]
    known = [(before, after) for before, after in told if before is not None and after is not None]
    scale = max(
        (float(case.root_mean_square(one).last) for one in case.parameters(norm.path) if one.name == "weight"),
        default=1.0,
    )
    return len(known) > 1 and all(
        _spread(after) < NOTHING.value * scale and _spread(before) > 0 for before, after in known
    )


def _spread(channels: Moments) -> float:
    """The deviation between samples, the root mean square over channels."""
    return float(np.sqrt(np.mean(channels.var)))


def _network(groups: int, width: int = 32) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.GroupNorm(groups, width), nn.ReLU(), nn.Linear(width, 8))


SICK = (Scene(partial(_network, 32), ("1",), steps=24),)
HEALTHY = (Scene(partial(_network, 4), steps=24),)

RULE = Rule(
    "NS309",
    "lone_element",
    "error",
    "record",
    check,
    __doc__,
    thresholds={"nothing": NOTHING},
    causes=(
        "unrelated_targets",
        "unread_input",
        *("poor_initialization", "vanishing_gradient", "dead_units", "unmoved_layer", "rate_too_low", "rank_collapse"),
        *("collapsed_channels", "symmetric_units", "unlike_units"),
    ),
    sick=SICK,
    healthy=HEALTHY,
)
