"""Gradients are added up from step to step: they are never set to zero.

## What it finds
Linear layers whose gradient, as the optimizer gets it, is larger than the batch of the step can account for, and grows
from step to step. The gradient of a weight is δᵀx, so by Cauchy and Schwarz ‖∂L/∂W‖ ≤ ‖δ‖·‖x‖ for the inputs x and
output gradients δ of the step; what lies beyond comes from other batches. Deliberate accumulation over a few batches
has a constant ratio and is no finding; nor are layers that no optimizer moves, whose gradients are never cleared and
never used. Where a network has no linear layer, the gradients of its other weights are held against those of the fixed
batch at the same parameters, five times of which no batch of the same data gives for half of them.

## Why it hurts
Each step follows the sum of all gradients since the start, a momentum of one: the network rushes past every minimum,
and the older the run, the less its newest batch counts.

## Evidence
‖∂L/∂W‖ / (‖δ‖·‖x‖) at each sampled step, for every linear layer; where there is none, ‖∂L/∂W‖ over that of the fixed
batch, for every weight.

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
from torch import Tensor, nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd, stripes
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

OTHERS = Threshold(
    5.0,
    "measured on convolutions and recurrences of this file's examples: 0.5 to 1.5 at every step where gradients are "
    "cleared, as many times as steps were taken, ten and more, where they are not; chosen between",
    "ratio",
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with the layers whose gradient is more than the batch's."""
    sites = [site for site in case.producers if not site.call]
    owned = [site for site in sites if all(len(case.moves(one)) for one in _weights(case, site))]
    tracks = {site: track for site in owned if site.kind == "Linear" and len(track := _ratio(case, site))}
    limit, words = BEYOND, "the most that its batch can give"
    if not tracks:
        tracks = {site: track for site in owned if len(track := _against_fixed_batch(case, site))}
        limit, words = OTHERS, "that of the fixed batch at the same parameters"
    beyond = {site: track for site, track in tracks.items() if _accumulates(track, limit)}
    if not beyond or len(beyond) < len(tracks) / 2:
        return
    worst = sorted(beyond, key=lambda site: -beyond[site].values.max())
    track = beyond[worst[0]]
    most = float(track.values.max())
    yield RULE.finding(
        [site.path for site in worst],
        f"The gradient of `{worst[0].place}` is up to {most:.1f} times {words}, "
        f"{most / float(track.values[0]):.0f} times as much as at the start, and {len(beyond)} of {len(tracks)} "
        f"layers are beyond {limit.value:g} times.",
        limit.evidence("gradient", most, track.steps, [(site.key, beyond[site].values.max()) for site in worst]),
        severity="error" if not case.thrives else "warning",
        since_step=int(track.steps[0]),
        prescriptions=[
            remedies.advice("call `optimizer.zero_grad()` before each `loss.backward()`", "backward adds up")
        ],
    )


def _weights(case: Case, site: Site) -> list[Site]:
    """The weights of a layer: what the optimizer does not own it does not clear either."""
    return [one for one in case.parameters(site.path) if "weight" in one.name]


def _accumulates(track: Track, limit: Threshold) -> bool:
    """Whether it is beyond the limit again and again, and has grown since the first step, where nothing was left."""
    if len(track) < 4:
        return False
    again = int((track.values > limit.value).sum())
    return again > 1 and float(np.median(track.values[1:])) > GROWTH.value * float(track.values[0])


def _against_fixed_batch(case: Case, site: Site) -> Track:
    """‖∂L/∂W‖ of a training batch over that of the fixed batch, all weights of a layer together."""
    slopes = [one.at("gradient", one.name) for one in _weights(case, site)]
    live, fixed = ([case.over(one, "gradient_norm", source) for one in slopes] for source in ("live", "probe"))
    steps = [set(track.steps.tolist()) for track in (*live, *fixed)]
    common = sorted(set.intersection(*steps)) if steps else []
    sums = [
        np.sqrt(sum(track.values[np.isin(track.steps, common)] ** 2 for track in tracks)) for tracks in (live, fixed)
    ]
    return Track.of(common, sums[0] / np.where(sums[1] > 0, sums[1], np.nan)) if common else Track.of((), ())


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


class _Maps(nn.Module):
    """Convolutions alone, averaged over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu()).mean((2, 3))


SICK = (
    Scene(_network, ("0", "2", "4"), optimizer=sgd(0.01, 0.0), clear=False, steps=60),
    Scene(_Maps, ("first", "last"), data=stripes, optimizer=sgd(0.01, 0.0), clear=False, steps=60),
)
HEALTHY = (
    Scene(_network, steps=60),
    Scene(_network, optimizer=sgd(0.2), steps=60),
    Scene(_Maps, data=stripes, optimizer=sgd(0.2), steps=60),
)

RULE = Rule(
    "NS216",
    "accumulated_gradient",
    "error",
    "record",
    check,
    __doc__,
    thresholds={"beyond": BEYOND, "growth": GROWTH, "others": OTHERS},
    causes=(
        "unrelated_targets",
        *("rate_too_high", "nonfinite_values", "dead_units", "saturated_activation", "drifting_distribution"),
        *("exploding_gradient", "vanishing_gradient", "growing_weights", "rank_collapse"),
    ),
    sick=SICK,
    healthy=HEALTHY,
)
