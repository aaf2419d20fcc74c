"""What the network says of a sample depends on the other samples of the batch.

## What it finds
Models whose output for one half of the fixed batch changes, in evaluation mode, when the other half is replaced: a
softmax, a mean or a norm over the batch instead of over classes, positions or features; a recurrence or an attention
that takes the axis of samples for that of time (`batch_first`); a reshape where a transpose was meant. Where the output
is the same for all samples, what is made inside is looked at. Which axis is that of samples is told by their order:
neighbours in time are alike, and samples drawn at random are not. Norms that take the statistics of the batch in
evaluation mode too have a rule of their own.

## Why it hurts
The loss compares the output of each sample with its own target. What is mixed from all samples has lost whose it was,
and what is learned of it holds for the company of this batch alone: a sample by itself, or in another batch, is told
something else.

## Evidence
The root mean square of the change of the outputs whose own inputs stayed, over the deviation of all outputs between
samples; and the first module at which it shows.

## Prescription
Name the axis: `dim=-1` or `dim=1` for classes, `batch_first=True` for (samples, time, features), `transpose` instead of
`reshape` for exchanging axes.

## When to ignore
When samples are meant to see one another: graphs whose nodes are the rows, contrastive batches.

## References
Karpathy 2019, *A recipe for training neural networks*, "use backprop to chart dependencies".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from normscope.anatomy.batch import Probe, tensors
from normscope.anatomy.recognize import spec_of
from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.counterfactual import Experiment, rms, spread
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.diagnose.wiring import samples_first
from normscope.terms.finding import Finding, Prescription

MIXED = Threshold(
    1e-3,
    "chosen: far above the rounding of float32 (1e-7 an operation), and a thousandth of what tells samples apart",
    "deviations",
)
FEWEST = 4
"""Samples of a batch of which halves can be exchanged."""


class _Half(NamedTuple):
    """The half of a batch that stays: the first (0) or the second (1)."""

    number: int

    def kept(self, values: Tensor) -> Tensor:
        half = len(values) // 2
        return values[:half] if self.number == 0 else values[half:]

    def replaced(self, values: Tensor) -> Tensor:
        """The batch with its other half replaced by samples of this one."""
        half = len(values) // 2
        own = self.kept(values).flip(0)
        return torch.cat(
            [values[:half], own[: len(values) - half]] if self.number == 0 else [own[:half], values[half:]]
        )


def check(case: Case) -> Iterator[Finding]:
    """At most one finding."""
    tried = case.experiment
    if tried is None or not _by_samples(tried):
        return
    own = tried.answer()
    mixed = {half: _apart(own, tried.answer(half.replaced), half) or 0.0 for half in (_Half(0), _Half(1))}
    half = max(mixed, key=lambda one: mixed[one])
    value = mixed[half]
    silent = own is not None and float(spread(own)) < MIXED.value * float(rms(own))
    if not (value > MIXED.value or silent):
        return
    kept, changed = tried.traced(), tried.traced(half.replaced)
    apart = {path: _apart(kept[path], changed.get(path), half) or 0.0 for path in kept if path}
    inner = [path for path in apart if apart[path] > MIXED.value and own is not None and len(kept[path]) == len(own)]
    first = inner[0] if inner else ""
    if not (value > MIXED.value or inner):
        return
    value = value if value > MIXED.value else apart[first]
    yield RULE.finding(
        [first],
        f"With the other half of the fixed batch replaced, {'what is made' if silent else 'the outputs'} of samples "
        f"that stayed change{'s' if silent else ''} by {value:.2g} of their deviation in evaluation mode"
        + (f", from `{first}` on." if first else "."),
        MIXED.evidence("mixed", value, [int(case.steps[0])], [(first, value)]),
        severity="error" if case.learns is False else "warning",
        since_step=int(case.steps[0]),
        prescriptions=list(_prescriptions(tried, first)),
    )


def _prescriptions(experiment: Experiment, first: str) -> Iterator[Prescription]:
    module = dict(experiment.model.named_modules()).get(first)
    if getattr(module, "batch_first", None) is False:
        yield remedies.advice(f"build `{first}` with `batch_first=True`", "its input has samples first, then time")
    yield remedies.advice(
        "name the axis of features, classes or positions (`dim=-1`) in every softmax, mean, norm and reshape "
        + (f"at `{first}` or right before it" if first else "of the model"),
        "axis 0 is that of the samples",
    )


def _by_samples(experiment: Experiment) -> bool:
    """Whether axis 0 of everything is known to be that of samples, which no norm mixes by design."""
    probe = Probe.of(experiment.probe)
    given, asked = tensors((probe.args, dict(probe.kwargs))), tensors(probe.target)
    size = probe.batch_size or 0
    if size < FEWEST or not asked or any(not one.ndim or len(one) != size for one in (*given, *asked)):
        return False
    modules = list(experiment.model.modules())
    timed = asked[0].ndim > 1 and any(getattr(one, "batch_first", None) is False for one in modules)
    if timed and not samples_first(experiment):
        return False  # (time, samples, …) throughout
    held = (*experiment.model.parameters(), *experiment.model.buffers())
    if any(one.ndim == 2 and tuple(one.shape) == (size, size) and not one.requires_grad for one in held):
        return False  # who is whose neighbour: the rows are nodes of one graph
    return not any(
        spec is not None and "N" in spec.over and not spec.keeps_state for spec in (spec_of(one) for one in modules)
    )


def _apart(before: Tensor | None, after: Tensor | None, half: _Half) -> float | None:
    """How much the kept half has changed, in deviations between samples; None where it cannot be told."""
    if before is None or after is None or before.shape != after.shape or len(before) < FEWEST:
        return None
    change = rms(half.kept(after) - half.kept(before))
    unit = torch.maximum(spread(before), 1e-3 * rms(before))
    return float(change / unit) if bool(torch.isfinite(change)) and float(unit) > 0 else None


class _OverSamples(nn.Module):
    """A softmax over the samples of a batch."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.first, self.last, self.axis = nn.Linear(32, 32), nn.Linear(32, 8), axis

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).softmax(self.axis))


SICK = (Scene(lambda: _OverSamples(0), ("last",), optimizer=sgd(0.05), steps=12, at_hand=True),)
HEALTHY = (
    Scene(lambda: _OverSamples(1), optimizer=sgd(1.0), steps=12, at_hand=True),
    Scene(lambda: nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8)), at_hand=True),
)

RULE = Rule(
    "NS227",
    "mixed_samples",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"mixed": MIXED},
    causes=(
        "unrelated_targets",
        *("poor_initialization", "rank_collapse", "vanishing_gradient", "rate_too_low", "restricted_output"),
        *(
            "unread_input",
            "unmoved_layer",
            "dead_units",
            "double_softmax",
            "unheard_targets",
            "train_eval_gap",
            "symmetric_units",
        ),
    ),
    sick=SICK,
    healthy=HEALTHY,
)
