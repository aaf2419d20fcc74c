"""From the start the signal dies or explodes on its way through the network.

## What it finds
Two starts from which a network hardly gets away by itself. The signal dies: behind some layer, and in every layer
after it to the output, all samples give nearly the same, differing by less than a four-hundredth of their size. Or it
explodes: the last layers' activations are more than four hundred times as large as the first ones'. It must be so at
the first probe and stay so for a quarter of the run; many networks start with little variation at the output and have
it grown after a few steps.

## Why it hurts
A network whose output is the same for all samples can only learn the mean of the targets, and its gradients carry no
information about the input. One whose activations explode starts with a huge loss and huge gradients.

## Evidence
On the fixed batch, the deviation of each layer's output between samples over its root mean square: the root of one
minus the correlation of two samples. And the root mean square of each layer's output relative to the first's.

## Prescription
Normalize over the batch before each activation, or draw the weights at the gain of the activation (He for rectifiers,
Xavier for tanh). Under sigmoids only the former helps: the constant 1/2 that each of them adds is common to all
samples.

## When to ignore
When the samples of the fixed batch are nearly alike, as when the probe holds one sample many times.

## References
Glorot & Bengio 2010, section 4.2; He et al. 2015, *Delving deep into rectifiers*, section 2.2.
Poole et al. 2016, *Exponential expressivity in deep neural networks through transient chaos*.
Schoenholz et al. 2017, *Deep Information Propagation*.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.layers import collapsed
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.diagnose.symptoms import variation
from normscope.terms.finding import Evidence, Finding, Severity
from normscope.terms.site import Site

ALIKE = Threshold(
    float(np.exp(-6)),
    "six e-folds: networks train up to a depth of about six of the scales over which samples become alike (the "
    "experiments of Schoenholz et al. 2017); no sound run of benchmarks/faults, of 145, is flagged",
    "share",
)
EXPLODED = Threshold(float(np.exp(6)), "the same six e-folds, upwards", "ratio")
SHUT = Threshold(1.0, "definition: all units are dead", "share")
WIDE = Threshold(
    0.1, "chosen: e^-2.3, within two of the six e-folds; what the first layer makes of it is the layer's own", "share"
)
LASTING = 4
"""The signal must be gone for a quarter of the run; chosen, because many such starts recover in a few steps."""


def check(case: Case) -> Iterator[Finding]:
    """At most one finding of each kind: a dying signal, an exploding one."""
    yield from _dying(case)
    yield from _exploding(case)


def _dying(case: Case) -> Iterator[Finding]:
    along = case.variation
    least = along.behind()
    stretch = least.starts(below=ALIKE.value)
    if stretch < max(2, len(least) / LASTING):
        return
    column = along.values[:, 0]
    start = collapsed(column, ALIKE.value)
    layers = along.paths[start:]
    if not layers or (not start and not _told_apart(case)):
        return
    shut = _shut_before(case, layers[0])
    if shut is not None and start:  # what feeds the units that are shut is where it begins
        layers = along.paths[start - 1 :]
    yield _finding(
        case,
        layers,
        f"From `{layers[0]}` to the output all samples give nearly the same: they differ by {least.values[0]:.2g} of "
        f"their size at the first step, and by {least.last:.2g} at the last."
        + (f" All units of `{shut.place}` are dead from the start." if shut is not None else ""),
        Evidence(
            "variation",
            least.last,
            ALIKE.value,
            tuple(int(step) for step in least.steps),
            ALIKE.unit,
            ALIKE.source,
            tuple((path, float(along.at(path).last)) for path in layers),
        ),
    )


def _told_apart(case: Case) -> bool:
    """Whether the samples differ before the first layer makes them alike."""
    told = case.summaries(case.producers[0].at("input"), "probe")[:1]
    return any(one.channels is not None and variation(one.channels) > WIDE.value for _, one in told)


def _shut_before(case: Case, path: str) -> Site | None:
    """The activation next before a layer whose units are all dead at the first probe."""
    depth = case.depth_of(path) or 0
    near = [site for site in case.hidden_activations if site.depth < depth][-1:]
    return next((site for site in near if len(dead := case.dead(site)) and dead.values[0] >= SHUT.value), None)


def _exploding(case: Case) -> Iterator[Finding]:
    magnitude = case.magnitude
    flood = magnitude.flood()  # first over last
    if not len(flood) or not 0 < flood.values[0] < 1 / EXPLODED.value or not magnitude.values[0, 0] > 0:
        return
    growth = magnitude.values[:, 0] / magnitude.values[0, 0]
    layers = tuple(path for path, ratio in zip(magnitude.paths, growth) if ratio > EXPLODED.value)
    yield _finding(
        case,
        layers or magnitude.paths[-1:],
        f"Activations grow {1 / flood.values[0]:.0f}-fold from the first layers to the last at the first step.",
        Evidence(
            "magnitude",
            float(1 / flood.values[0]),
            EXPLODED.value,
            tuple(int(step) for step in flood.steps),
            EXPLODED.unit,
            EXPLODED.source,
            tuple((path, float(ratio)) for path, ratio in zip(magnitude.paths, growth) if path in layers),
        ),
    )


def _finding(case: Case, layers: tuple[str, ...], message: str, evidence: Evidence) -> Finding:
    severity: Severity = "warning" if case.learns else "error"
    return RULE.finding(
        layers,
        message,
        evidence,
        severity=severity,
        since_step=evidence.steps[0],
        prescriptions=list(remedies.cures(case, case.hidden_activations)),
    )


def _stack(function: type[nn.Module], depth: int, scale: float = 1.0, width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=scale * width**-0.5)
        layers += [linear, function()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


SICK = (
    Scene(partial(_stack, nn.Tanh, 16, 0.4), ("32",)),
    Scene(partial(_stack, nn.ReLU, 16, 0.5), ("32",)),
    Scene(partial(_stack, nn.ReLU, 8, 8.0), optimizer=sgd(1e-9)),
)
HEALTHY = (
    Scene(partial(_stack, nn.ReLU, 8, 2**0.5), optimizer=sgd(0.02)),
    Scene(partial(_stack, nn.Tanh, 16, 1.2), optimizer=sgd(0.02)),
    Scene(lambda: nn.Sequential(nn.Linear(32, 32), nn.Sigmoid(), nn.Linear(32, 8)), optimizer=sgd(0.3)),
)

RULE = Rule(
    "NS206",
    "poor_initialization",
    "error",
    "record",
    check,
    __doc__,
    thresholds={"alike": ALIKE, "exploded": EXPLODED, "shut": SHUT, "wide": WIDE},
    causes=(
        *("vanishing_gradient", "exploding_gradient", "dead_units", "saturated_activation", "nonfinite_values"),
        *("rate_too_high", "rate_too_low", "rank_collapse", "uneven_updates", "drifting_distribution"),
        *("amplified_drift", "unmoved_layer"),
    ),
    symptom="unlike",
    removal="initialization",
    sick=SICK,
    healthy=HEALTHY,
)
