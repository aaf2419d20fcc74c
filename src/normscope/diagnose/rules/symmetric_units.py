"""All units of a layer compute the same, and training keeps them the same.

## What it finds
Layers before the last whose units all have the same deviation over the fixed batch, at every probe from the first to
the last: the weights of the units are equal, as after a constant (or zero) initialization. A branch that starts at zero
on purpose is no finding, because its units part at the first update.

## Why it hurts
Units with equal weights get equal gradients and stay equal forever: the layer has the capacity of one unit, whatever
its width. With weights of zero behind it, it gets no gradient at all.

## Evidence
The spread of the units' deviations over their mean, at every probe.

## Prescription
Draw the weights at random, at the gain of the activation behind them. Zero is right for biases, and for the last layer
of a residual branch; not for a weight between two layers.

## When to ignore
When the layer is meant to hold copies of one unit.

## References
Goodfellow, Bengio & Courville 2016, *Deep Learning*, section 8.4: initial parameters need to "break symmetry".
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
from normscope.diagnose.track import Track
from normscope.stats.moments import Moments
from normscope.terms.finding import Finding, Prescription
from normscope.terms.site import Site

EQUAL = Threshold(
    1e-4,
    "the deviations of two units of random weights over n inputs differ by about 1/√n of themselves: 1e-4 would need "
    "a hundred million inputs; rounding in float32 leaves 1e-6",
    "ratio",
)

ROUNDING = 1e-3
"""Below this share of a layer's size its units' deviations are lost in the rounding of their means."""


def check(case: Case) -> Iterator[Finding]:
    """One finding with every layer whose units are and stay the same."""
    alike = {site: track for site in case.producers[:-1] if len(track := _spread(case, site)) and _throughout(track)}
    if not alike:
        return
    worst = sorted(alike, key=lambda site: site.depth)
    track = alike[worst[0]]
    yield RULE.finding(
        tuple(dict.fromkeys(site.path for site in worst)),
        f"The {case.channels(worst[0])} units of `{worst[0].place}` give the same (their deviations differ by "
        f"{track.last:.0e}) at each of {len(track)} probes, and so do those of {len(alike)} of "
        f"{len(case.producers)} layers.",
        EQUAL.evidence("symmetry", track.last, track.steps, [(site.key, alike[site].last) for site in worst]),
        severity="warning" if case.thrives else "error",
        since_step=int(track.steps[0]),
        prescriptions=[_random(tuple(dict.fromkeys([*(site.path for site in worst), *_constant(case)])))],
    )


def _throughout(track: Track) -> bool:
    return bool((track.values < EQUAL.value).all())


def _constant(case: Case) -> tuple[str, ...]:
    """The layers whose weights were all equal when they were first seen."""
    found = []
    for site in case.producers:
        for one in case.parameters(site.path):
            spread = case.over(one, "std") if "weight" in one.name and not site.call else Track.of((), ())
            if len(spread) and spread.values[0] == 0:
                found.append(site.path)
    return tuple(dict.fromkeys(found))


def _spread(case: Case, site: Site) -> Track:
    """How unlike the units are, at each probe."""
    told = [(step, one.channels) for step, one in case.summaries(site, "probe")]
    known = [(step, channels) for step, channels in told if channels is not None and channels.mean.size > 1]
    fed = case.root_mean_square(site.at("input"), "probe")
    if not len(fed) or not fed.values.max() > 0:  # what reads nothing but zeros cannot help being the same
        return Track.of((), ())
    return Track.of((step for step, _ in known), (_unlike(channels) for _, channels in known))


def _unlike(channels: Moments) -> float:
    """The range of the deviations over their mean; where they are rounding, that of the means counts as well."""
    size, typical = float(np.sqrt(np.mean(channels.var + channels.mean**2))), float(np.mean(channels.std))
    if typical > ROUNDING * size:
        return float(np.ptp(channels.std)) / typical
    return float(max(np.ptp(channels.std), np.ptp(channels.mean))) / size if size > 0 else 0.0


def _random(sites: tuple[str, ...]) -> Prescription:
    return Prescription(
        "reinitialize",
        sites,
        words=f"draw the weights of {remedies.few(sites)} at random: `nn.init.kaiming_normal_(weight)` before ReLU, "
        "`nn.init.xavier_normal_(weight)` otherwise",
        reason="units that start apart get gradients of their own",
    )


def _stack(value: float | None, norm: bool = False, width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(2):
        linear = nn.Linear(width, width)
        if value is not None:
            nn.init.constant_(linear.weight, value)
            nn.init.zeros_(linear.bias)
        layers += [linear, *([nn.BatchNorm1d(width)] if norm else []), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


SICK = (
    Scene(partial(_stack, 0.05), ("0",), steps=24),
    Scene(partial(_stack, 0.0), ("0",), steps=24),
)
HEALTHY = (Scene(partial(_stack, None)), Scene(partial(_stack, None, True)))

RULE = Rule(
    "NS208",
    "symmetric_units",
    "error",
    "record",
    check,
    __doc__,
    thresholds={"equal": EQUAL},
    causes=(
        "poor_initialization",
        "vanishing_gradient",
        "unmoved_layer",
        "dead_units",
        "rate_too_low",
        "rank_collapse",
    ),
    symptom="symmetry",
    removal="initialization",
    sick=SICK,
    healthy=HEALTHY,
)
