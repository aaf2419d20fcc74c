"""The targets of a regression lie far outside of what the network's activations reach.

## What it finds
Networks that learn numbers, by a squared or an absolute error, whose targets lie thirty times further from the outputs
at the start than the largest activations of any layer are wide. The distance needs no target: a squared error L over N
outputs has a gradient g with ‖g‖² = 4L/N (4L where it is a sum), so the loss and the gradient at the output say that it
is one, and L is the distance squared; an absolute error has ‖g‖² = 1/N (or N), and L is the distance. With the fixed
batch at hand, also targets that are a thirtieth as large as the first outputs, where these are what any start gives.

## Why it hurts
The last layer has to grow, or its bias to travel, by that factor. An optimizer whose steps have a size of their own
(Adam) takes as many more steps; one that follows the gradient (SGD) gets gradients as many times too large, and throws
the weights away.

## Evidence
The root mean square of output minus target at the first samples, over that of the widest layer's output.

## Prescription
Standardize the targets, `(y - mean) / std` of the training set, and undo it on predictions; or start the last bias at
their mean.

## When to ignore
When the loss falls all the same, and the time it takes does not matter.

## References
LeCun, Bottou, Orr & Müller 1998, *Efficient BackProp* (targets within the range of the units). The gradients of both
losses are derived above.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from normscope.anatomy.batch import Probe
from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Data, Scene, clusters, sgd
from normscope.diagnose.track import Track
from normscope.terms.finding import Finding, Prescription, Severity
from normscope.terms.site import Site

SPARED = Threshold(
    0.8, "chosen: a network that has lost four fifths of the error of the mean got away from where it started", "share"
)
FAR = Threshold(
    30.0,
    "chosen: with standardized targets and inputs the distance is about one, and some activations are about one; the "
    "curvature of a squared error along what has to grow thirtyfold is 900 times that of a typical direction",
    "ratio",
)
GAIN = Threshold(4.0, "what `poor_initialization` calls large: no rule draws weights at a higher gain", "gain")
ALIKE = Threshold(
    0.05,
    "derived: the identities between loss and gradient are exact for the losses named; chosen for the part of a large "
    "tensor that is looked at",
    "share",
)

FIRST = 3


def check(case: Case) -> Iterator[Finding]:
    """At most one finding, at the last layer."""
    distance = _distance(case)
    if (small := _small(case)) is not None and len(distance):
        yield small
        return
    sizes = case.magnitude.values[:, :1]
    width = float(np.nanmax(sizes)) if np.isfinite(sizes).any() else 0.0
    if not len(distance) or not width > 0:
        return
    far = Track.of(distance.steps, distance.values / width)
    value = float(np.min(far.values[:FIRST]))  # a step too large throws the outputs away from any target
    if not value > FAR.value:
        return
    last = case.producers[-1]
    yield RULE.finding(
        [last.path],
        f"At the start the targets lie {value * width:.3g} away from the outputs, {value:.3g} times the size of the "
        f"largest activations in the network ({width:.3g}).",
        FAR.evidence("distance", value, far.steps, [(last.key, value)]),
        severity=_severity(case),
        since_step=int(far.steps[0]),
        prescriptions=[
            _standardized(),
            remedies.advice(f"or start the bias of `{last.place}` at the mean of the targets, and scale its output"),
        ],
    )


def _small(case: Case) -> Finding | None:
    """Targets that are next to nothing beside what the network gives before it has learned."""
    target = Probe.of(case.experiment.probe).target if case.experiment is not None else None
    given = case.summaries(Site(""), "probe")[:1]
    if not isinstance(target, Tensor) or not target.is_floating_point() or not given or not case.producers:
        return None
    size = float(target.double().square().mean().sqrt())
    if not size > 0 or not given[0][1].rms > FAR.value * size:
        return None
    last, ratio = case.producers[-1], given[0][1].rms / size
    read = case.summaries(last.at("input"), "probe")[:1]
    if not read or given[0][1].rms > GAIN.value * read[0][1].rms:
        return None  # the outputs are too large, whatever is asked for
    return RULE.finding(
        [last.path],
        f"The targets have a root mean square of {size:.3g}, and the outputs of a network that has learned nothing yet "
        f"{ratio:.3g} times that: what is to be told lies below what every step changes.",
        FAR.evidence("size", ratio, [given[0][0]], [(last.key, ratio)]),
        severity=_severity(case),
        since_step=given[0][0],
        prescriptions=[_standardized()],
    )


def _standardized() -> Prescription:
    return remedies.advice(
        "standardize the targets: train on `(y - mean) / std` with both from the training set, and predict "
        "`output * std + mean`",
        "initialization, learning rate and activations are made for numbers of the size of one",
    )


def _severity(case: Case) -> Severity:
    if (case.fallen or 0.0) > SPARED.value:
        return "note"
    return "error" if case.learns is False or case.diverged else "warning"


def _distance(case: Case) -> Track:
    """The root mean square of output minus target, where loss and gradient show a squared or an absolute error."""
    gradient = Site("").at("gradient")
    slope, told = case.over(gradient, "gradient_norm"), case.summaries(gradient, "live")
    steps, ours, theirs = np.intersect1d(case.loss.steps, slope.steps, return_indices=True)
    if len(steps) < FIRST or not told or not case.producers:
        return Track.of((), ())
    loss, square, n = case.loss.values[ours], slope.values[theirs] ** 2, told[0][1].size
    # squared error: ‖g‖² over L, and the distance squared over L, as a mean, a sum, and both halved
    shapes = [(square / np.maximum(loss, 1e-300), ratio, loss * part) for ratio, part in _squared(n)]
    # absolute error: ‖g‖² itself, and the distance over L
    shapes += [(square, ratio, (loss * part) ** 2) for ratio, part in ((1 / n, 1.0), (float(n), 1 / n))]
    for found, expected, squared in shapes:
        early = found[:FIRST] / expected
        if (np.abs(early - 1) < ALIKE.value).all() and (loss[:FIRST] > 0).all():
            return Track.of(steps, np.sqrt(np.maximum(squared, 0.0)))
    return Track.of((), ())


def _squared(n: int) -> tuple[tuple[float, float], ...]:
    """‖g‖²/L and the mean squared distance over L, for a squared error as a mean, as a sum, and half of each."""
    return (4 / n, 1.0), (4.0, 1 / n), (2 / n, 2.0), (2.0, 2 / n)


def _targets(scale: float = 1.0, offset: float = 0.0) -> Data:
    inputs, _ = clusters()
    return inputs, offset + scale * (inputs[:, :4] * inputs[:, 4:8])


def _squared_error(output: Tensor, target: Tensor) -> Tensor:
    return mse_loss(output, target)


def _absolute_error(output: Tensor, target: Tensor) -> Tensor:
    return l1_loss(output, target)


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def _small_start() -> nn.Module:
    """A last layer that starts at zero, as those of many heads do."""
    model = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    for parameter in model[2].parameters():
        nn.init.zeros_(parameter)
    return model


def _halved(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * (output - target).square().sum()


SICK = (
    Scene(_network, ("2",), data=lambda: _targets(1e5), loss=_squared_error, optimizer=sgd(1e-6, 0.0)),
    Scene(_network, ("2",), data=lambda: _targets(1.0, 500.0), loss=_absolute_error, optimizer=sgd(0.01)),
    Scene(_network, ("2",), data=lambda: _targets(1e4), loss=_halved, optimizer=sgd(1e-6, 0.0)),
)
HEALTHY = (
    Scene(_network, data=_targets, loss=_squared_error),
    Scene(_small_start, data=_targets, loss=_absolute_error),
    Scene(_network, data=lambda: _targets(3.0, 10.0), loss=_squared_error, optimizer=sgd(0.02)),
    Scene(lambda: nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)), optimizer=sgd(0.2)),
)

RULE = Rule(
    "NS226",
    "unstandardized_target",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"spared": SPARED, "far": FAR, "gain": GAIN, "alike": ALIKE},
    causes=(
        *("unrelated_targets", "poor_initialization"),
        *("rate_too_high", "rate_too_low", "exploding_gradient", "vanishing_gradient", "nonfinite_values"),
        *("dead_units", "saturated_activation", "drifting_distribution", "uneven_updates"),
        *("rank_collapse", "amplified_drift", "unlike_batches", "symmetric_units", "unmoved_layer"),
    ),
    travels="backward",
    sick=SICK,
    healthy=HEALTHY,
)
