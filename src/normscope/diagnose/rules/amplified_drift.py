"""A small change of the first layers becomes a large one at the last: drift grows with depth.

## What it finds
Networks in which the update of one of the first layers, alone, moves the output of the last layer more than fifty times
as far as the layer's own output, each in its own deviations, and the loss does not fall below half of its start.

## Why it hurts
The layers behind learn on inputs that move under them; with depth the movement is multiplied, and the only rate at
which the last layers see steady inputs is one at which the first do not learn.

## Evidence
On the fixed batch, with one layer moved by its own update and all others held: the shift of the last layer's output
over the layer's own (where the watcher had this probe among its `probes`).

## Prescription
Normalize what the activations read: the growth is divided out at each layer. Add skip connections, lower the rate.

## When to ignore
When the loss falls evenly all the same, as in residual networks whose branches average out.

## References
Ioffe & Szegedy 2015, *Batch Normalization*, section 1: small changes "amplify as the network becomes deeper".
Schoenholz et al. 2017, *Deep Information Propagation* (the chaotic phase).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.terms.finding import Finding

GROWN = Threshold(
    50.0,
    "chosen: nearly four e-folds (e⁴ = 55), of the six over which networks still train (the experiments of Schoenholz "
    "et al. 2017)",
    "ratio",
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with the layers whose steps grow."""
    tracks = {site: case.scalar(site, "depth_amplification") for site in case.producers}
    late = {site: float(np.median(track.late().values)) for site, track in tracks.items() if len(track.late())}
    worst = sorted((site for site in late if late[site] > GROWN.value), key=lambda site: -late[site])
    if not worst or case.thrives:
        return
    track = tracks[worst[0]]
    yield RULE.finding(
        tuple(dict.fromkeys(site.path for site in worst)),
        f"What an update of `{worst[0].place}` does to its own output has grown {late[worst[0]]:.0f}-fold when it "
        f"reaches the last layer; {len(worst)} of {len(late)} layers are beyond {GROWN.value:.0f}.",
        GROWN.evidence("depth_amplification", late[worst[0]], track.steps, [(site.key, late[site]) for site in worst]),
        since_step=int(track.late().steps[0]),
        prescriptions=[
            *remedies.cures(case, case.hidden_activations),
            remedies.advice("divide the learning rate by 3 to 10", "shorter steps drift less"),
        ],
    )


def _tanh_stack(gain: float, depth: int, width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=gain * width**-0.5)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


SICK = (
    Scene(
        lambda: _tanh_stack(6.0, 10),
        ("0",),
        optimizer=sgd(1e-6),
        steps=21,
        every=10,
        probes=("activation", "amplification"),
    ),
)
HEALTHY = (
    Scene(lambda: _tanh_stack(1.2, 6), optimizer=sgd(0.02), steps=21, every=10, probes=("activation", "amplification")),
)

RULE = Rule(
    "NS214",
    "amplified_drift",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"grown": GROWN},
    causes=("drifting_distribution",),
    sick=SICK,
    healthy=HEALTHY,
)
