"""Every sample that the network reads is the same.

## What it finds
A fixed batch of at least two samples that are equal to the last bit, in every floating-point tensor of it: a loader
that reads one file again and again, an image that was decoded to nothing, a normalization that multiplied by zero.

## Why it hurts
A network that is always shown the same can only learn the mean of its targets. All that looks like bad initialization
or dead units behind it (samples that are alike, gradients that add up to the mean) is no fault of the network.

## Evidence
The largest difference between a sample and the first one, on the fixed batch where it is at hand; else the largest
deviation of a feature in what the record holds of the first layer's input.

## Prescription
Look at what the loader yields: `batch.std(0)`, and the samples themselves.

## When to ignore
When the fixed batch is one sample many times on purpose.

## References
Karpathy 2019, *A recipe for training neural networks*, "become one with the data" and "visualize just before the net".
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from normscope.anatomy.batch import Probe
from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Data, Scene, clusters
from normscope.terms.finding import Finding

SAME = Threshold(0.0, "definition: samples that do not differ at all differ by exactly zero", "units of the input")


def check(case: Case) -> Iterator[Finding]:
    """At most one finding."""
    first = next(iter(case.producers), None)
    if first is None or first.kind.startswith("Embedding") or (spread := _spread(case)) is None or spread > SAME.value:
        return
    step = int(case.steps[0])
    yield RULE.finding(
        [first.path],
        f"The samples of the fixed batch are all the same at `{first.place}`: they differ by {spread:g}.",
        SAME.evidence("std", spread, [step], [(first.at("input").key, spread)]),
        since_step=step,
        prescriptions=[
            remedies.advice(
                "look at what the loader yields: `batch.std(0)` is zero", "the network is shown one sample for all"
            )
        ],
    )


def _spread(case: Case) -> float | None:
    """How much the samples differ; None where there are none to compare."""
    if case.experiment is not None:
        probe = Probe.of(case.experiment.probe)
        given = [one for one in (*probe.args, *probe.kwargs.values()) if isinstance(one, Tensor) and one.ndim]
        real = [one for one in given if one.is_floating_point() and len(one) > 1]
        differ = [float((one - one[:1]).abs().max()) for one in real]
        if not differ or len(real) < len(given):
            return None
        if not max(differ) > SAME.value or case.learns is not False:
            return max(differ)
    first = case.producers[0]  # something before it can have taken away what tells samples apart
    told = [one.channels for _, one in case.summaries(first.at("input"), "probe")[:1] if one.channels is not None]
    return float(told[0].std.max()) if told and case.values_per_channel(first) > 1 else None


def _constant() -> Data:
    inputs, labels = clusters()
    return inputs[:1].expand_as(inputs).clone(), labels


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


SICK = (Scene(_network, ("0",), data=_constant, steps=12),)
HEALTHY = (Scene(_network, steps=12),)

RULE = Rule(
    "NS223",
    "constant_input",
    "error",
    "record",
    check,
    __doc__,
    thresholds={"same": SAME},
    causes=(
        "unrelated_targets",
        *("poor_initialization", "vanishing_gradient", "dead_units", "rank_collapse", "rate_too_low", "rate_too_high"),
        *("collapsed_channels", "unlike_units", "unstandardized_input", "restricted_output", "symmetric_units"),
    ),
    sick=SICK,
    healthy=HEALTHY,
)
