"""The inputs do not tell the targets, although the network is able to learn.

## What it finds
Runs that have not learned while their layers moved, whose network, as it stands at the end, learns the fixed batch by
heart within a hundred steps of its own: signal, gradient and loss are sound, and what is learned of one batch is of no
use for the next. Labels that were shuffled apart from their inputs, targets of other samples, inputs that an
augmentation or a wrong scaling has turned into noise. And, where no rule finds anything, runs that have come to rest
before half of their loss was gone, though copies learn the fixed batch, from anew and from where the run has ended.

## Why it hurts
What holds for one batch and for no other cannot be learned. The loss stays at that of knowing nothing but the shares of
the classes, or the mean of the targets, at any learning rate.

## Evidence
The loss of the fixed batch after a hundred steps of Adam on it alone, on a copy, over what it was before.

## Prescription
Look at some inputs beside their targets, as the loader yields them, augmentations included.

## When to ignore
When the task is hard and the run is young.

## References
Karpathy 2019, *A recipe for training neural networks*, "overfit one batch" and "visualize just before the net".
Zhang et al. 2017, *Understanding deep learning requires rethinking generalization*: random labels are learned by heart.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rehearsal import LEARNT, carried_over, rehearsed
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Data, Scene, clusters, sgd
from normscope.terms.finding import Finding, Prescription, Removal

HEARD = Threshold(
    0.5, "chosen: half of the loss, what counts as thriving in every rule here, here of one batch", "share"
)
MOVED = Threshold(
    0.05, "chosen: between the 2% below which `rate_too_low` speaks and the size of the weights themselves", "ratio"
)
RESTLESS = Threshold(0.1, "what `rate_too_high` calls restless: a tenth of the weights at each step", "ratio")
RESTING = Threshold(0.1, "what counts as learning in every rule here, of the second half of the run", "share")
LITTLE = Threshold(0.35, "chosen: a third of the loss; many sound runs of hard tasks rest at half of theirs", "share")
CARRIED = Threshold(
    0.02, "chosen: a fiftieth of the loss of chance; half a batch of handwritten digits carries over a third", "share"
)
STEPS = 100
RATES = (1.0, 10.0, 30.0, 100.0)
"""Multiples of the run's rate at which a copy is asked whether anything can be learned: slow is not unrelated."""


def check(case: Case) -> Iterator[Finding]:
    """At most one finding."""
    typical = case.update_ratio.typical()
    if case.experiment is None or case.learns is not False or case.diverged or len(typical) < 4:
        return
    path = float(typical.values.mean()) * (int(case.steps[-1] - case.steps[0]) + 1)
    calm = float(np.median(typical.values)) < RESTLESS.value
    if not (path > MOVED.value and calm and case.loss.last < 1.5 * float(case.loss.values[0])):
        return
    before, after = case.experiment.by_heart(STEPS) or (0.0, 0.0)
    if not before > 0 or after > HEARD.value * before or _told(case):
        return
    first = case.sites[0].path if case.sites else ""
    yield RULE.finding(
        [first],
        f"The network learns the fixed batch by heart ({before:.3g} to {after:.3g} in {STEPS} steps of its own), and "
        f"has learned nothing in the run ({float(case.loss.values[0]):.3g} to {case.loss.last:.3g}): what it sees of "
        "one batch is of no use for the next.",
        HEARD.evidence("loss", after / before, [int(case.steps[-1])]),
        since_step=int(case.steps[0]),
        removals=[Removal("one batch for all steps", "loss of the fixed batch", before, after)],
        prescriptions=[_look()],
    )


def again(case: Case) -> Iterator[Finding]:
    """The network learns one batch by heart, anew and from where it stands, and the run comes to rest far above."""
    fresh, own = rehearsed(case), rehearsed(case, anew=False)
    late = case.loss.late()
    resting = len(late) > 5 and (late.fallen or 0.0) < RESTING.value and (case.fallen or 0.0) < LITTLE.value
    if fresh is None or own is None or not (fresh > LEARNT and own > LEARNT):
        return
    carried = carried_over(case)
    if not resting and (carried is None or carried > CARRIED.value):
        return
    first = case.sites[0].path if case.sites else ""
    yield RULE.finding(
        [first],
        f"Copies learn the fixed batch by heart with this optimizer ({fresh:.0%} of its loss is gone in some steps "
        f"from anew, {own:.0%} from the end of the run), and the run has lost {case.fallen or 0.0:.0%}: "
        + (
            f"what is learned of one half of that batch takes {carried:.0%} of the loss of the other half away."
            if carried is not None
            else "part of what it sees of one batch is of no use for the next."
        ),
        HEARD.evidence("rehearsal", 1 - own, [int(case.steps[-1])]),
        since_step=int(case.steps[0]),
        prescriptions=[_look()],
    )


def _told(case: Case) -> bool:
    """Whether the inputs tell the targets after all: what a copy learns of one half helps with the other half."""
    if (carried_over(case, plain=True) or 0.0) > CARRIED.value:
        return True
    return any((carried_over(case, rate) or 0.0) > CARRIED.value for rate in RATES)


def _look() -> Prescription:
    return remedies.advice(
        "look at inputs beside their targets as the loader yields them: `for x, y in loader: …`, before and after "
        "every augmentation",
        "targets that were shuffled apart from their inputs look like any others to the loss",
    )


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))


def _shuffled() -> Data:
    inputs, labels = clusters(4096)
    return inputs, labels[torch.randperm(len(labels))]


SICK = (Scene(_network, ("0",), _shuffled, sgd(0.03), steps=60, at_hand=True),)
HEALTHY = (Scene(_network, steps=24, at_hand=True),)

RULE = Rule(
    "NS231",
    "unrelated_targets",
    "warning",
    "record",
    check,
    __doc__,
    second=again,
    thresholds={
        "resting": RESTING,
        "carried": CARRIED,
        "little": LITTLE,
        "heard": HEARD,
        "moved": MOVED,
        "restless": RESTLESS,
    },
    causes=("drifting_distribution",),
    travels="both",
    sick=SICK,
    healthy=HEALTHY,
)
