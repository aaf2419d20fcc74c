"""The activations of all samples fall onto one line.

## What it finds
Networks in which a hidden layer, and every layer behind it, spans one direction alone on the fixed batch (an effective
rank below 1.01: all samples differ from their common direction by less than a tenth of their size), although the layers
before span more, through the second half of a run that has not learned.

## Why it hurts
What is on one line can be told apart by one number. The layers behind see hardly more than that all samples are the
same, gradients of all units are multiples of one another, and the network fits the mean of the targets.

## Evidence
tr(M)²/‖M‖² with M = HᵀH/N of each layer's output H, at each probe.

## Prescription
Normalize over the batch, which keeps the rank; draw the weights at the gain; in attention networks keep the skip
connections and the MLPs, without which tokens become the same doubly exponentially fast.

## When to ignore
When the network ends in a bottleneck of one unit.

## References
Daneshmand et al. 2020, *Batch normalization provably avoids rank collapse for randomly initialised deep networks*.
Dong, Cordonnier & Loukas 2021, *Attention is not all you need: pure attention loses rank doubly exponentially with
depth*.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.terms.finding import Finding

ONE = Threshold(
    1.01,
    "chosen: by Cauchy and Schwarz the rank is at least tr(M)²/‖M‖² (Daneshmand et al. 2020 measure it so); at 1.01 "
    "what is off the one direction holds half a hundredth of the energy, 7% of the size",
    "directions",
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with the end of the network that spans one direction."""
    if case.learns is not False or len(case.producers) < 4:
        return
    tracks = {
        site: case.scalar(site, "effective_rank").late() for site in case.producers[:-1] if case.channels(site) > 1
    }
    rank = {site: float(np.median(track.values)) for site, track in tracks.items() if len(track) > 1}
    sites = list(rank)
    start = next((place for place in range(len(sites)) if all(rank[site] < ONE.value for site in sites[place:])), 0)
    if not start:
        return
    fallen = sites[start:]
    track = tracks[fallen[-1]]
    yield RULE.finding(
        tuple(dict.fromkeys(site.path for site in fallen)),
        f"From `{fallen[0].place}` on, {len(fallen)} of {len(sites)} hidden layers span one direction: an effective "
        f"rank of {rank[fallen[-1]]:.4f} of {case.channels(fallen[-1])}, after {rank[sites[0]]:.1f} in the first.",
        ONE.evidence("effective_rank", rank[fallen[-1]], track.steps, [(site.key, rank[site]) for site in fallen]),
        since_step=int(track.steps[0]),
        prescriptions=list(remedies.cures(case, case.hidden_activations)) or [remedies.advice("add skip connections")],
    )


def _stack(depth: int, norm: bool = False, width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


SICK = (Scene(partial(_stack, 14), ("24", "26"), optimizer=sgd(1e-3)),)
HEALTHY = (Scene(partial(_stack, 8, True), optimizer=sgd(0.02)), Scene(partial(_stack, 3)))

RULE = Rule(
    "NS220",
    "rank_collapse",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"one": ONE},
    sick=SICK,
    healthy=HEALTHY,
)
