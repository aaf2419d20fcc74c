"""A norm divides by its eps, not by the deviation of what it reads.

## What it finds
Norms whose eps is larger than the variance of what they read (of the median channel, for those that normalize each by
itself), at the first probe and at the last: an eps above a thousandth, or any where the network does not thrive or its
modes lie apart.

## Why it hurts
σ² + eps is then mostly eps: the norm divides by a constant. Its output is as small as √eps is large, the layers behind
get next to no signal and gradient, and scale, which the norm was to take out, stays in.

## Evidence
eps over the variance of the input on the fixed batch.

## Prescription
Take the usual eps: 1e-5, 1e-6 in transformers, 1e-3 where half precision is used. Where it has that size, bring the
input to unit scale.

## When to ignore
When the norm is made to be soft on purpose, as a fixed scale.

## References
Ioffe & Szegedy 2015, *Batch Normalization*, algorithm 1: eps is "added … for numerical stability".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.diagnose.track import Track
from normscope.terms.finding import Finding, Prescription
from normscope.terms.site import Site

DOMINANT = Threshold(1.0, "definition: more than half of what the norm divides by is eps", "ratio")
USUAL = Threshold(1e-3, "the largest eps in use (TensorFlow's batch normalization)", "variance")
APART = Threshold(
    0.5,
    "chosen: between the modes, as in `stale_running_stats`; what drifts is many of so small deviations",
    "deviations",
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with every norm that divides by its eps."""
    found = {site: track for site in case.norms if len(track := _ratio(case, site))}
    worst = [site for site in found if min(found[site].values[0], found[site].last) > DOMINANT.value]
    if not worst:
        return
    worst.sort(key=lambda site: -found[site].last)
    track, value = found[worst[0]], found[worst[0]].last
    sites = tuple(dict.fromkeys(site.path for site in worst))
    yield RULE.finding(
        sites,
        f"`{worst[0].place}` adds an eps of {_eps(worst[0]):g} to a variance {value:.3g} times smaller, and "
        f"{len(sites)} of {len(case.norms)} norms divide by their eps more than by what they measure.",
        DOMINANT.evidence("eps", value, track.steps, [(site.key, found[site].last) for site in worst]),
        severity="error"
        if case.learns is False
        else "note"
        if case.thrives and not case.output_gap.last > APART.value
        else "warning",
        since_step=int(track.steps[0]),
        prescriptions=[_smaller(sites) if _eps(worst[0]) > USUAL.value else _wider(sites)],
    )


def _eps(site: Site) -> float:
    eps = site.spec.eps if site.spec else 0.0
    return float(eps or 0.0) ** (1 if site.spec is None or site.spec.eps_place == "inside" else 2)


def _ratio(case: Case, site: Site) -> Track:
    """The eps over the variance of the input, at each probe; a usual eps counts where something is amiss."""
    amiss = not case.thrives or case.output_gap.last > APART.value
    return case.guard(site) if _eps(site) > USUAL.value or amiss else Track.of((), ())


def _smaller(sites: tuple[str, ...]) -> Prescription:
    return remedies.advice(f"build {remedies.few(sites)} with `eps=1e-5`", "it guards the division, and is no scale")


def _wider(sites: tuple[str, ...]) -> Prescription:
    return remedies.advice(
        f"bring what {remedies.few(sites)} reads to unit scale: inputs divided once (by 255, or by their deviation)",
        "an eps of the usual size is right for numbers of the usual size",
    )


def _stack(eps: float) -> nn.Module:
    layers = [layer for _ in range(2) for layer in (nn.Linear(32, 32), nn.BatchNorm1d(32, eps=eps), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(32, 8))


SICK = (Scene(partial(_stack, 100.0), ("1", "4"), steps=24),)
HEALTHY = (Scene(partial(_stack, 1e-3), steps=24),)

RULE = Rule(
    "NS315",
    "dominant_eps",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"dominant": DOMINANT, "usual": USUAL, "apart": APART},
    causes=(
        *("lone_element", "stale_running_stats", "train_eval_gap", "mixed_domains"),
        "unrelated_targets",
        "poor_initialization",
        "vanishing_gradient",
        "rate_too_low",
        "collapsed_channels",
        "rank_collapse",
        "dead_units",
    ),
    sick=SICK,
    healthy=HEALTHY,
)
