"""The output does not depend on most of the input.

## What it finds
Networks that are run on the fixed batch in evaluation mode, and whose output moves with less than half of the input's
numbers that differ from sample to sample: the derivative of every output by all others is exactly zero, for every
sample. A recurrence that is read at its first step, a slice or a pooling that leaves out what was meant, a mask the
wrong way round, a branch that was not joined; where nothing at all is read, a cut between input and output.

## Why it hurts
The network cannot learn from what it does not read.

## Evidence
The root mean square of the gradient of random combinations of the outputs at each number of the input.

## Prescription
Follow the data from the input: which index, slice, mask or pooling leaves these numbers out.

## When to ignore
When the rest is left out on purpose, as by a stride that is larger than the kernel.

## References
Simonyan, Vedaldi & Zisserman 2014, *Deep inside convolutional networks*, section 3: the gradient at the input
tells what an answer depends on.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.diagnose.wiring import heard
from normscope.terms.finding import Finding

UNREAD = Threshold(0.5, "chosen: more of the input is left out than is read", "share")


def check(case: Case) -> Iterator[Finding]:
    """At most one finding."""
    told = heard(case.experiment) if case.experiment is not None and not case.diverged else None
    if told is None or len(told[0]) < 2:
        return
    entry, slope = told
    differs = entry.std(0) > 0
    unread = (slope.abs().amax(0) == 0) & differs
    count = int(differs.sum())
    if not count or not int(unread.sum()) > UNREAD.value * count:
        return
    share = int(unread.sum()) / count
    if share < 1:
        yield _unread(case, share, _where(unread, differs))


def again(case: Case) -> Iterator[Finding]:
    """Nothing of the input is read: what most ailments end in, and a finding where none of them was found."""
    told = heard(case.experiment) if case.experiment is not None else None
    if told is None or not bool((told[0].std(0) > 0).any()) or bool(told[1].any()):
        return
    yield _unread(case, 1.0, " at all: nothing that the network gives comes from the batch")


def _unread(case: Case, share: float, where: str) -> Finding:
    first = case.sites[0].path if case.sites else ""
    return RULE.finding(
        [first],
        f"The output does not depend on {share:.0%} of the input's numbers that differ from sample to sample{where}.",
        UNREAD.evidence("unread", share, [int(case.steps[-1])], [(first, share)]),
        severity="error" if case.learns is False else "note" if case.thrives else "warning",
        since_step=int(case.steps[0]),
        prescriptions=[
            remedies.advice(
                "follow the input to the output: an index such as `[:, 0]` where `[:, -1]` was meant, a slice, a mask, "
                "a flipped axis or a branch that is not added",
                "what is not read cannot be learned from",
            )
        ],
    )


def _where(unread: Tensor, differs: Tensor) -> str:
    """In words: the first axis along which what is left out stands apart."""
    for axis in range(unread.ndim):
        whole = (unread | ~differs).movedim(axis, 0).reshape(unread.shape[axis], -1).all(1)
        if bool(whole.any()) and not bool(whole.all()):
            places = whole.nonzero()[:, 0].tolist()
            return f": nothing is read at {len(places)} of {len(whole)} places of axis {axis + 1}, from {places[0]} on"
    return ""


class _First(nn.Module):
    """Reads a recurrent layer at its first step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.body, self.head, self.step = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 8), step

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.unflatten(1, (4, 8)))[0][:, self.step])


SICK = (Scene(lambda: _First(0), ("body",), steps=12, at_hand=True),)
HEALTHY = (Scene(lambda: _First(-1), steps=12, at_hand=True),)

RULE = Rule(
    "NS234",
    "unread_input",
    "warning",
    "record",
    check,
    __doc__,
    second=again,
    thresholds={"unread": UNREAD},
    causes=("unrelated_targets",),
    sick=SICK,
    healthy=HEALTHY,
)
