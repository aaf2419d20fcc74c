"""A norm over the units of a layer is given units of unlike size, and standardizes their difference.

## What it finds
Norms over the features (layer norm, RMS norm, group norm) whose output hardly depends on the sample: samples differ by
less than a twentieth of its size, because the units differ far more from one another than any unit does from sample to
sample. So it is at a first layer norm over raw features of different scales, in a network that does not thrive.

## Why it hurts
The norm takes mean and deviation over all units as if they were of one kind. Where one unit is a thousand times the
others, every sample is standardized by that unit, and comes out as the same pattern of units.

## Evidence
The deviation of the norm's output between samples, over its root mean square, on the fixed batch.

## Prescription
Standardize each feature over the data set before the norm, or put a batch normalization there; let layer norm follow a
linear layer that has mixed the features.

## When to ignore
When the pattern of the units is what counts, as in spectra.

## References
Ba, Kiros & Hinton 2016, *Layer Normalization*, section 6.7: it works well where the units of a layer "make similar
contributions".
Kovaleva et al. 2021, *BERT busters: outlier dimensions that disrupt transformers*.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Data, Scene, clusters
from normscope.diagnose.symptoms import variation
from normscope.diagnose.track import Track
from normscope.terms.finding import Finding
from normscope.terms.site import Site

ALIKE = Threshold(
    0.05,
    "chosen: e^-3, half of the six e-folds over which networks still train (the experiments of Schoenholz et al. "
    "2017), spent in one layer",
    "share",
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with every such norm."""
    if case.thrives:
        return
    tracks = {norm: _left(case, norm) for norm in case.norms if norm.spec and "C" in norm.spec.over}
    unlike = {norm: track for norm, track in tracks.items() if track.since(below=ALIKE.value) is not None}
    unlike = {norm: track for norm, track in unlike.items() if _first(case, norm, unlike)}
    if not unlike:
        return
    worst = sorted(unlike, key=lambda norm: unlike[norm].last)
    track = unlike[worst[0]]
    yield RULE.finding(
        tuple(dict.fromkeys(norm.path for norm in worst)),
        f"Behind `{worst[0].place}` samples differ by {track.last:.3f} of their size: its units are of unlike scale, "
        f"and the norm standardizes their difference, at {len(unlike)} of {len(tracks)} norms over units.",
        ALIKE.evidence("variation", track.last, track.steps, [(norm.key, unlike[norm].last) for norm in worst]),
        since_step=track.since(below=ALIKE.value),
        prescriptions=[
            remedies.advice("standardize each feature over the training set before this norm: `(x - mean) / std`"),
            remedies.advice("or put `nn.BatchNorm1d(features)` there, which takes each unit by itself"),
        ],
    )


def _left(case: Case, norm: Site) -> Track:
    told = [(step, one.channels) for step, one in case.summaries(norm, "probe") if one.channels is not None]
    return Track.of((step for step, _ in told), (variation(channels) for _, channels in told))


def _first(case: Case, norm: Site, unlike: dict[Site, Track]) -> bool:
    """Whether what the norm reads still tells samples apart, unit by unit: not when they were alike already."""
    earlier = [site for site in case.producers if site.depth < norm.depth]
    tracks = [case.variation.at(site.path) for site in earlier if site.path in case.variation.paths]
    return not any(len(track) and track.last < ALIKE.value for track in tracks)


def _scales() -> Data:
    inputs, labels = clusters()
    return inputs + torch.tensor([300.0, *[0.0] * 31]), labels


def _network(norm: type[nn.Module] = nn.LayerNorm) -> nn.Module:
    return nn.Sequential(norm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


SICK = (Scene(_network, ("0",), data=_scales),)
HEALTHY = (Scene(_network), Scene(partial(_network, nn.BatchNorm1d), data=_scales))

RULE = Rule(
    "NS308",
    "unlike_units",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"alike": ALIKE},
    causes=("poor_initialization", "dead_units", "rate_too_low", "rank_collapse", "vanishing_gradient"),
    sick=SICK,
    healthy=HEALTHY,
)
