"""The network's input is far from mean 0 and deviation 1, which its initialization takes for granted.

## What it finds
A first layer whose input is ten times larger or smaller than a standardized one, with no normalization before or right
behind it (that no shortcut goes around); or lies three of its own deviations off zero, with no norm around it that
centres each unit by itself, as batch normalization does and layer normalization does not; or has one feature thirty
times as wide as the typical one.

## Why it hurts
Initializations keep a variance of one from layer to layer, so the first pre-activations are as large as the input:
functions saturate, the loss starts in the thousands, and the gradient of the first weights is as many times too large.
A common offset or one wide feature makes the loss a ravine: its curvature along that direction is the square of the
ratio, and the learning rate has to suit the steepest.

## Evidence
On the fixed batch: the root mean square of the input, the ratio of means to deviations, and of the widest feature's
deviation to the median one.

## Prescription
Subtract the mean and divide by the deviation of each feature (of each channel of images), both from the training set,
or let a normalization be the first layer.

## When to ignore
When inputs are counts or one-hot codes whose zero has a meaning.

## References
LeCun, Bottou, Orr & Müller 1998, *Efficient BackProp*, section 4.3. Glorot & Bengio 2010, section 4.2.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Data, Scene, clusters, sgd
from normscope.diagnose.track import Track
from normscope.stats.summary import Summary
from normscope.terms.finding import Finding
from normscope.terms.site import Site

LARGE = Threshold(
    10.0,
    "chosen: initializations keep the deviation of their input; at ten, 83% of a normal tanh's inputs lie beyond its "
    "points of saturation at 2.18",
    "deviations",
)
SMALL = Threshold(
    0.1,
    "chosen: the same factor downwards; what a linear layer makes of its weights is then a tenth of what it makes of "
    "a standardized input",
    "deviations",
)
OFFSET = Threshold(
    3.0,
    "chosen: E[x²] = σ²(1 + r²) for an offset of r deviations, so the curvature along it is stretched tenfold at three "
    "(LeCun et al. 1998, section 4.3); ImageNet between 0 and 1 has two (0.485/0.229 for red)",
    "deviations",
)
SPARED = Threshold(
    0.95,
    "chosen: a large input starts a large loss, of which half is easily lost: a network counts as having overcome it "
    "when a twentieth is left",
    "share",
)
UNEQUAL = Threshold(
    30.0, "chosen: the curvature along the widest feature is the square, 900 times that of a typical one", "ratio"
)


class _Ill(NamedTuple):
    """What is wrong with an input: in words, how much, and against which threshold."""

    words: str
    value: float
    threshold: Threshold
    quantity: str

    @property
    def excess(self) -> float:
        """How far beyond the threshold it lies, as a factor."""
        return SMALL.value / max(self.value, 1e-30) if self.threshold is SMALL else self.value / self.threshold.value


def check(case: Case) -> Iterator[Finding]:
    """At most one finding for each input."""
    if not case.sites or case.sites[0].role != "producer":
        return
    first = case.sites[0]
    told = [] if first.kind.startswith("Embedding") else case.summaries(first.at("input"), "probe")
    found = _ill(told[0][1], _behind(case, first)) if told else None
    if found is None:
        return
    steps = Track.of((step for step, _ in told), (0.0 for _ in told)).steps
    yield RULE.finding(
        [first.path],
        f"The input of the network, at `{first.place}`, {found.words.format(value=found.value)}.",
        found.threshold.evidence(found.quantity, found.value, steps, [(first.at("input").key, found.value)]),
        severity="note"
        if (case.loss.fallen or 0.0) > SPARED.value
        else "error"
        if case.learns is False or case.diverged
        else "warning",
        since_step=int(steps[0]),
        prescriptions=[
            remedies.advice(
                "standardize the data: `(x - mean) / std` with mean and deviation of each feature of the training set",
                "the initialization and the learning rate are made for inputs of mean 0 and deviation 1",
            ),
            remedies.advice(
                "put `nn.BatchNorm1d(features)` (images: `nn.BatchNorm2d(channels)`) before the first layer"
            ),
        ],
    )


def _behind(case: Case, first: Site) -> Site | None:
    """The norm that reads the first layer's output as it is, with nothing added on the way."""
    norm = case.sites[1] if len(case.sites) > 1 and case.sites[1].role == "norm" else None
    if norm is None:
        return None
    given, read = (case.summaries(one, "probe")[:1] for one in (first, norm.at("input")))
    same = (
        given
        and read
        and np.isclose(given[0][1].std, read[0][1].std, rtol=1e-9)
        and given[0][1].size == read[0][1].size
    )
    return norm if same and not _carried_past(case, first, norm) else None


def _carried_past(case: Case, first: Site, norm: Site) -> bool:
    """Whether a large output of the first layer goes around the norm too, and stands in what a later norm reads."""
    later = [one for one in case.norms if one.depth > norm.depth]
    sizes = [told[0][1].rms for one in later if (told := case.summaries(one.at("input"), "probe")[:1])]
    own = case.summaries(first, "probe")[0][1].rms
    return own > LARGE.value and max(sizes, default=0.0) > own / 2


def _ill(summary: Summary, norm: Site | None) -> _Ill | None:
    """What is worst about the input; a norm behind it takes the scale away, and the offset if it centres each unit."""
    channels = summary.channels
    if channels is None or not channels.var.any():
        return None
    varied = channels.std[channels.std > 0]
    offset = float(np.sqrt(np.sum(channels.mean**2) / np.sum(channels.var)))
    unequal = float(varied.max() / np.median(varied)) if len(varied) > 1 else 1.0
    size = "has a root mean square of {value:.3g}, where 1 is taken for granted"
    signs = [_Ill("has a feature {value:.3g} times as wide as the median one", unequal, UNEQUAL, "width")]
    if norm is None:
        signs += [_Ill(size, summary.rms, LARGE, "rms"), _Ill(size, summary.rms, SMALL, "rms")]
    if norm is None or norm.spec is None or "C" in norm.spec.over:
        signs += [_Ill("lies {value:.3g} of its deviations off zero", offset, OFFSET, "offset")]
    return max((sign for sign in signs if sign.excess > 1), key=lambda sign: sign.excess, default=None)


def _moved(offset: float = 0.0, scale: float = 1.0) -> Data:
    inputs, labels = clusters()
    return scale * (inputs + offset), labels


def _network(norm: bool = False) -> nn.Module:
    first = [nn.BatchNorm1d(32)] if norm else []
    return nn.Sequential(*first, nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 8))


class _Standing(nn.Module):
    """A layer norm behind the first layer: it takes away what is common to units, and leaves what samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())


SICK = (
    Scene(_network, ("0",), data=partial(_moved, scale=100.0), optimizer=sgd(0.2)),
    Scene(_Standing, ("first",), data=partial(_moved, offset=50.0)),
    Scene(_network, ("0",), data=partial(_moved, offset=20.0)),
    Scene(_network, ("0",), data=partial(_moved, scale=1e-3), optimizer=sgd(1e-3)),
)
HEALTHY = (
    Scene(_network),
    Scene(partial(_network, True), data=partial(_moved, scale=100.0)),
    Scene(_network, data=partial(_moved, offset=1.0)),
)

RULE = Rule(
    "NS209",
    "unstandardized_input",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"large": LARGE, "small": SMALL, "offset": OFFSET, "unequal": UNEQUAL, "spared": SPARED},
    causes=(
        "unrelated_targets",
        *("saturated_activation", "dead_units", "vanishing_gradient", "exploding_gradient", "nonfinite_values"),
        *("poor_initialization", "rate_too_high", "drifting_distribution", "uneven_updates", "restricted_output"),
        *("rank_collapse", "rate_too_low", "unlike_units"),
    ),
    removal="input",
    sick=SICK,
    healthy=HEALTHY,
)
