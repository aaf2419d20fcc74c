"""Training sees the same batch again and again.

## What it finds
Runs in which what the first layer reads is the same, to the last digit, at every sampled step, while the loss of the
training batches has come to less than half of that of the fixed batch, which is of the same data: the loader gives one
batch for ever, or a few samples.

## Why it hurts
A network learns a handful of samples by heart, and nothing about the others.

## Evidence
The mean and the deviation of the first layer's input at each sampled step, and the loss of the fixed batch over that of
the last training batches.

## Prescription
Draw a new batch for each step: an iterator that is built inside the loop begins anew each time.

## When to ignore
When a network is to learn one batch by heart, as a test of its code.

## References
Bottou 2010, *Large-scale machine learning with stochastic gradient descent*, section 2: each step takes a fresh sample.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Data, Scene, clusters
from normscope.terms.finding import Finding

WORSE = Threshold(2.0, "chosen: samples that were seen have half the loss of those that were not", "ratio")
FEWEST = 4
"""Samples of the run at which the input has to be the same."""


def check(case: Case) -> Iterator[Finding]:
    """At most one finding."""
    if case.experiment is None or not case.sites or len(case.loss) < FEWEST or case.diverged:
        return
    first = case.sites[0]
    told = [(summary.size, summary.rms, summary.std) for _, summary in case.summaries(first.at("input"), "live")]
    if len(told) < FEWEST or len(set(told)) > 1 or not told[0][2] > 0:
        return
    unseen, seen = case.experiment.losses(()).get(0.0), case.loss.last
    if unseen is None or not unseen > WORSE.value * max(seen, 1e-30):
        return
    ratio = unseen / max(seen, 1e-30)
    yield RULE.finding(
        [first.path],
        f"What `{first.place}` reads has the same mean and deviation ({told[0][1]:.6g}, {told[0][2]:.6g}) at all of "
        f"{len(told)} sampled steps, and the loss of the fixed batch ({unseen:.3g}) is {ratio:.3g} times that of the "
        f"training batches ({seen:.3g}): it is one batch again and again.",
        WORSE.evidence("loss", ratio, [int(case.steps[-1])], [(first.key, ratio)]),
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(
                "take each step's batch from one iterator: `for inputs, targets in loader: …`, not "
                "`next(iter(loader))` inside the loop",
                "an iterator that is built anew begins with the first batch",
            )
        ],
    )


def _few() -> Data:
    """Samples that differ, the first batch apart, and one sample for all the rest: what training sees is the same."""
    inputs, labels = clusters(65536)
    inputs[32:], labels[32:] = inputs[40], labels[40]
    return inputs, labels


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


SICK = (Scene(_network, ("0",), _few, steps=24, seed=3, at_hand=True),)
HEALTHY = (Scene(_network, steps=24, at_hand=True),)

RULE = Rule(
    "NS237",
    "repeated_batch",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"worse": WORSE},
    causes=("unrelated_targets", "unlike_batches", "rank_collapse", "dead_units"),
    sick=SICK,
    healthy=HEALTHY,
)
