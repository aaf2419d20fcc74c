"""All units of a layer compute the same, and training keeps them the same.

## What it finds
Layers whose weights were all one number other than zero when they were first seen; networks of which more than half of
the layers began at zero; and layers before the last whose units all have the same deviation over the fixed batch, at
every probe from the first to the last. A branch that starts at zero on purpose is no finding, because its units part at
the first update.

## Why it hurts
Units with equal weights get equal gradients and stay equal forever: the layer has the capacity of one unit, whatever
its width. With weights of zero behind it, it gets no gradient at all.

## Evidence
The deviation of the weights over their size at the first sampled step; the spread of the units' deviations over their
mean, at every probe.

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
    "a hundred million inputs; one rounding in float32 is 6e-8",
    "ratio",
)

ROUNDING = 1e-3
"""Below this share of a layer's size its units' deviations are lost in the rounding of their means."""


def check(case: Case) -> Iterator[Finding]:
    """One finding with every layer whose units are the same."""
    alike = {site: track for site in case.producers[:-1] if len(track := _spread(case, site)) and _throughout(track)}
    one, zero = _constant(case)
    copied = tuple(dict.fromkeys([*(site.path for site in alike), *one]))
    sites = tuple(dict.fromkeys([*copied, *zero])) if copied or 2 * len(zero) > len(_layers(case)) else ()
    if not sites:
        return
    steps = case.steps
    what = f"the weights of {len(one) + len(zero)} of {len(_layers(case))} layers were all one number" * bool(
        one or zero
    )
    same = f"the units of {len(alike)} layers give the same at each probe" * bool(alike)
    told = " and ".join(part for part in (what, same) if part)
    yield RULE.finding(
        sites,
        f"At step {steps[0]} {told}, first of all in `{sites[0]}`: its units get the same gradient.",
        EQUAL.evidence("symmetry", 0.0, steps, [(path, 0.0) for path in sites]),
        severity="warning" if case.thrives else "error",
        since_step=int(steps[0]),
        prescriptions=[_random(sites)],
    )


def _layers(case: Case) -> tuple[str, ...]:
    """The trained layers with more than one unit."""
    trained = (site for site in case.producers if case.parameters(site.path) and case.channels(site) > 1)
    return tuple(dict.fromkeys(site.path for site in trained))


def _throughout(track: Track) -> bool:
    return bool((track.values < EQUAL.value).all())


def _constant(case: Case) -> tuple[list[str], list[str]]:
    """The layers whose weights were all one number at the first sample, and those whose weights were all zero."""
    one: list[str] = []
    zero: list[str] = []
    for path in _layers(case):
        for weight in case.parameters(path):
            size, spread = case.root_mean_square(weight), case.over(weight, "std")
            if "weight" not in weight.name or not len(spread) or spread.values[0] > EQUAL.value * size.values[0]:
                continue
            (one if size.values[0] > 0 else zero).append(path)
            break
    return one, zero


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
        "unread_input",
        "unrelated_targets",
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
