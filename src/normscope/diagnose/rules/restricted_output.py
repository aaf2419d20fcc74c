"""The activation at the end of the network keeps it from saying what the loss asks for.

## What it finds
Networks that end in a bounded or rectifying activation whose output a cross-entropy takes for logits: its gradient adds
up to zero over the classes, as only a softmax behind it makes it. And networks that end in an activation and have
stopped learning (nothing of their loss is lost in the second half of the run, and less than half in all) while that
activation stands in the way: more than half of its inputs lie where it is silent (ReLU for targets that can be
negative) or flat (sigmoid or tanh for targets beyond their bounds). And networks of which no output within the range of
that activation brings the loss below half of where the run ends, while outputs without that bound would: a sigmoid
before `binary_cross_entropy_with_logits`. With the model at hand the bounds of any other end are found by trial: what
the last layer gives is replaced by numbers of size 100 and 10,000.

## Why it hurts
What the loss wants is beyond what the function can give. The gradient that reaches the output is healthy, and dies in
the last function; the loss stays on a plateau that no learning rate leaves.

## Evidence
The mean of the gradient at the output over its root mean square; the share of the last activation's inputs in its
silent or flat part on the fixed batch.

## Prescription
Let the network end in its last linear layer: losses for classes take logits (`cross_entropy`,
`binary_cross_entropy_with_logits`), and regression takes any real number. Or bring the targets into the bounds.

## When to ignore
When the targets are inside the bounds, and the network has just not learned for another reason.

## References
PyTorch documentation, *CrossEntropyLoss*: "the input is expected to contain the unnormalized logits". Cao et al. 2022,
*DeepFD: automated fault diagnosis and localization for deep learning programs* (wrong last activation).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Data, Scene, sgd
from normscope.diagnose.track import Track
from normscope.diagnose.wiring import reach
from normscope.terms.activations import Activation, activation_named
from normscope.terms.finding import Finding
from normscope.terms.site import Site

BLOCKED = Threshold(
    0.5, "the median input of the last function gets no gradient: half of what the loss asks for is not heard", "share"
)
BALANCED = Threshold(
    1e-4,
    "the gradient of cross-entropy is softmax − target, which adds up to 0 but for rounding (2⁻²⁴ of a probability in "
    "float32); chosen far above that, and far below what another loss leaves but by chance at every sampled step",
    "ratio",
)
STALLED = Threshold(
    0.1, "chosen: a tenth of the loss, beyond its noise, what counts as learning in every rule here", "share"
)

NEAR = Threshold(
    0.5, "chosen: more than half of the loss that is left is beyond what any weights can take away", "share"
)

_RANGES = {"sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "relu": (0.0, np.inf)}
_FREE = frozenset(["softmax", "log_softmax", "logsigmoid", "glu"])


def check(case: Case) -> Iterator[Finding]:
    """At most one finding: the last activation."""
    site = case.answer
    function = activation_named(site.kind) if site is not None else None
    if case.diverged:
        return
    if site is None or function is None or function.name not in _RANGES:
        bounded = _held(case)
        if bounded is not None:
            yield bounded
            return
    if site is None or function is None or function.name in _FREE:
        return
    found = _logits(case, site, function) or _stalled(case, site, function) or _floor(case, site, function)
    if found is None:
        return
    words, threshold, value, track = found
    yield RULE.finding(
        [site.path],
        words,
        threshold.evidence(_quantity(threshold), value, track.steps, [(site.key, value)]),
        severity="error" if case.learns is False else "note" if case.thrives else "warning",
        since_step=int(track.steps[0]),
        prescriptions=[
            remedies.advice(
                f"take `{site.place}` away: end in the last linear layer, and use a loss that takes its output as it "
                "is",
                "the loss then reaches every output",
            ),
            remedies.advice("or scale the targets into the bounds of the function"),
        ],
    )


def _held(case: Case) -> Finding | None:
    """Outputs within bounds, whatever the last layer says, which keep the loss near where the run has come to rest."""
    if case.experiment is None or case.thrives or not case.producers or not len(case.loss):
        return None
    last, end = case.producers[-1], case.loss.last
    bounds = reach(case.experiment, last.path) if end > 0 else None
    if bounds is None:
        return None
    within, free = case.experiment.least(*bounds), case.experiment.least(-np.inf, np.inf)
    if within is None or free is None or not (within > NEAR.value * end and 0 <= free < within / 2):
        return None
    return RULE.finding(
        [last.path],
        f"Whatever `{last.place}` says, the output stays between {bounds[0]:.3g} and {bounds[1]:.3g}, where the loss "
        f"of the fixed batch cannot fall below {within:.3g}; outputs without that bound bring it to {free:.3g}. The "
        f"run ends at {end:.3g}.",
        NEAR.evidence("least_loss", within / end, [int(case.steps[-1])], [(last.key, within / end)]),
        severity="error" if case.learns is False else "warning",
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(
                f"take away what stands between `{last.place}` and the loss: end in the last linear layer, and use a "
                "loss that takes its output as it is",
                "the loss then reaches every output",
            ),
            remedies.advice("or scale the targets into those bounds"),
        ],
    )


def _quantity(threshold: Threshold) -> str:
    return "balance" if threshold is BALANCED else "least_loss" if threshold is NEAR else "blocked"


_Found = tuple[str, Threshold, float, Track]


def _logits(case: Case, site: Site, function: Activation) -> _Found | None:
    """A softmax reads what the function leaves of the logits."""
    balance = case.balance(site)
    bounded = function.silent_below == 0 or None not in (function.low, function.high)
    if not bounded or case.channels(site) < 3 or len(balance) < 3 or not balance.values.max() < BALANCED.value:
        return None
    value = float(balance.values.max())
    words = (
        f"The network ends in {function.name}, and the gradient at `{site.place}` adds up to zero over its "
        f"{case.channels(site)} units ({value:.2g} of its size): a cross-entropy takes what {function.name} leaves for "
        "logits."
    )
    return words, BALANCED, value, balance


def _stalled(case: Case, site: Site, function: Activation) -> _Found | None:
    """The function blocks what the loss asks for."""
    share = _share(case, site, function).late()
    if case.thrives or len(share) < 2 or len(case.loss) < 12 or (case.loss.late().fallen or 0.0) > STALLED.value:
        return None
    value = float(np.median(share.values))
    part = "is silent" if function.silent_below is not None else "is flat"
    words = (
        f"The network ends in {function.name}, which {part} for {value:.0%} of what `{site.place}` reads, and the loss "
        f"has lost {case.loss.late().fallen or 0.0:.0%} in the second half of the run."
    )
    return (words, BLOCKED, value, share) if value > BLOCKED.value else None


def _floor(case: Case, site: Site, function: Activation) -> _Found | None:
    """The least loss that any output within the function's range has is near where the run has come to rest."""
    bounds = _RANGES.get(function.name)
    if bounds is None or case.experiment is None or not len(case.loss):
        return None
    within, free = case.experiment.least(*bounds), case.experiment.least(-np.inf, np.inf)
    end = case.loss.last
    if within is None or free is None or not end > 0 or not (within > NEAR.value * end and 0 <= free < within / 2):
        return None
    words = (
        f"The network ends in {function.name}, and no output between {bounds[0]:g} and {bounds[1]:g} brings the loss "
        f"of the fixed batch below {within:.3g}; outputs without that bound bring it to {free:.3g}. The run ends at "
        f"{end:.3g}."
    )
    return words, NEAR, within / end, Track.of(case.loss.steps[-1:], [within / end])


def _share(case: Case, site: Site, function: Activation) -> Track:
    told = case.summaries(site.at("input"), "probe")
    low, high = (function.silent_below, None) if function.silent_below is not None else (function.low, function.high)
    if low is None and high is None:
        return Track.of((), ())
    return Track.of((step for step, _ in told), (one.sketch.outside(low, high) for _, one in told))


def _targets(low: float = 5.0) -> Data:
    inputs = torch.randn(512, 32)
    return inputs, low + (inputs[:, :4] * inputs[:, 4:8])


def _ending(last: nn.Module | None) -> nn.Module:
    end: list[nn.Module] = [] if last is None else [last]
    return nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4), *end)


def _inside() -> Data:
    inputs, _ = _targets(0.0)
    return inputs, (inputs[:, :4] > 0).float()


def _error(output: Tensor, target: Tensor) -> Tensor:
    return mse_loss(output, target)


SICK = (
    Scene(partial(_ending, nn.Sigmoid()), ("3",), data=_targets, loss=_error, optimizer=sgd(0.3), steps=80),
    Scene(partial(_ending, nn.ReLU()), ("3",), data=partial(_targets, -5.0), loss=_error, steps=80),
    Scene(lambda: nn.Sequential(nn.Linear(32, 8), nn.Sigmoid()), ("1",), optimizer=sgd(0.1)),
)
HEALTHY = (
    Scene(partial(_ending, None), data=_targets, loss=_error, steps=80),
    Scene(partial(_ending, nn.Sigmoid()), data=_inside, loss=_error, optimizer=sgd(1.0), steps=80),
)

RULE = Rule(
    "NS217",
    "restricted_output",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"blocked": BLOCKED, "balanced": BALANCED, "stalled": STALLED, "near": NEAR},
    causes=(
        "unread_input",
        "unrelated_targets",
        "unstandardized_target",  # however the targets are scaled, a function that does not reach them has to go first
        *("vanishing_gradient", "exploding_gradient", "rate_too_low", "unmoved_layer", "poor_initialization"),
        *("dead_units", "rank_collapse"),
    ),
    sick=SICK,
    healthy=HEALTHY,
)
