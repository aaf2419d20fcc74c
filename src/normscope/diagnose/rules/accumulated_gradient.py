"""Gradients are added up from step to step: they are never set to zero.

## What it finds
Linear layers whose gradient, as the optimizer gets it, is larger than the batch of the step can account for, and grows
from step to step. The gradient of a weight is δᵀx, so by Cauchy and Schwarz ‖∂L/∂W‖ ≤ ‖δ‖·‖x‖ for the inputs x and
output gradients δ of the step; what lies beyond comes from other batches. Deliberate accumulation over a few batches
has a constant ratio and is no finding.

## Why it hurts
Each step follows the sum of all gradients since the start, a momentum of one: the network rushes past every minimum,
and the older the run, the less its newest batch counts.

## Evidence
‖∂L/∂W‖ / (‖δ‖·‖x‖) at each sampled step, for every linear layer.

## Prescription
Call `optimizer.zero_grad()` before each backward pass.

## When to ignore
When gradients of many batches are meant to add up, more of them as training goes on.

## References
PyTorch documentation, *torch.optim.Optimizer.zero_grad*. The bound is the inequality of Cauchy and Schwarz.
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

BEYOND = Threshold(
    1.5,
    "Cauchy and Schwarz: at most 1 for one batch; chosen half above, for what is estimated from a part of a tensor",
    "ratio",
)
GROWTH = Threshold(
    3.0,
    "chosen: accumulation over a fixed number of batches leaves the ratio where it was at the start: no growth",
    "ratio",
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with the layers whose gradient is more than the batch's."""
    tracks = {site: _ratio(case, site) for site in case.producers if site.kind == "Linear" and not site.call}
    beyond = {site: track for site, track in tracks.items() if _accumulates(track)}
    if not beyond or len(beyond) < len([site for site in tracks if len(tracks[site])]) / 2:
        return
    worst = sorted(beyond, key=lambda site: -beyond[site].values.max())
    track = beyond[worst[0]]
    most = float(track.values.max())
    yield RULE.finding(
        [site.path for site in worst],
        f"The gradient of `{worst[0].place}` is up to {most:.1f} times the most that its batch can give, "
        f"{most / float(track.values[0]):.0f} times as much as at the start, and {len(beyond)} of {len(tracks)} "
        "linear layers are beyond that bound.",
        BEYOND.evidence("gradient", most, track.steps, [(site.key, beyond[site].values.max()) for site in worst]),
        severity="error" if not case.thrives else "warning",
        since_step=int(track.steps[1]),
        prescriptions=[
            remedies.advice("call `optimizer.zero_grad()` before each `loss.backward()`", "backward adds up")
        ],
    )


def _accumulates(track: Track) -> bool:
    """Whether it is beyond the bound again and again, and has grown since the first step, where nothing was left."""
    if len(track) < 4:
        return False
    again = int((track.values > BEYOND.value).sum())
    return again > 1 and float(np.median(track.values[1:])) > GROWTH.value * float(track.values[0])


def _ratio(case: Case, site: Site) -> Track:
    """‖∂L/∂W‖ over ‖δ‖·‖x‖, at each sampled step of training."""
    weight = next((one for one in case.parameters(site.path) if one.name == "weight"), None)
    if weight is None:
        return Track.of((), ())
    slope = case.over(weight.at("gradient", "weight"), "gradient_norm"), case.over(site.at("gradient"), "gradient_norm")
    read = case.root_mean_square(site.at("input"))
    size = next((one.size for _, one in case.summaries(site.at("input"), "live")), 0)  # of the first batch
    if len({len(slope[0]), len(slope[1]), len(read)}) != 1 or not size:
        return Track.of((), ())
    bound = slope[1].values * read.values * size**0.5
    return Track.of(read.steps[bound > 0], slope[0].values[bound > 0] / bound[bound > 0])


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8))


SICK = (Scene(_network, ("0", "2", "4"), optimizer=sgd(0.01, 0.0), clear=False, steps=60),)
HEALTHY = (Scene(_network, steps=60), Scene(_network, optimizer=sgd(0.2), steps=60))

RULE = Rule(
    "NS216",
    "accumulated_gradient",
    "error",
    "record",
    check,
    __doc__,
    thresholds={"beyond": BEYOND, "growth": GROWTH},
    causes=(
        *("rate_too_high", "nonfinite_values", "dead_units", "saturated_activation", "drifting_distribution"),
        *("exploding_gradient", "vanishing_gradient"),
    ),
    sick=SICK,
    healthy=HEALTHY,
)
