"""Training mode and evaluation mode compute different functions, and a norm makes the difference.

## What it finds
Models with norms over the batch whose output on the fixed batch lies more than half a deviation apart in the two modes
through the second half of the run (with small batches, the output of a norm), when the gap opens at such a norm: its
output differs between the modes by more than its input does. Dropout also makes the modes differ; where it alone does,
no norm opens the gap, and there is no finding. A warning when the batches are small, since then it will not go away; a
note otherwise, because a network that still moves fast outruns its running averages for a while. With the model at hand
and no dropout in it, also what else acts in training alone: a norm reads nine times the variance there, on the same
batch.

## Why it hurts
What is trained is not what is used: the loss of training says little about the model that evaluation runs. With small
batches each sample is normalized by its chance neighbours in training and by the population at inference.

## Evidence
At each probe both modes run on the same batch with the same parameters: the distance of the outputs' means and
deviations, channel by channel, in deviations of the training-mode output, at each norm and at the model's output.

## Prescription
Where running statistics are stale (its own finding, and the cause of this one), recalibrate. Where batches are small,
replace batch by group or layer normalization, or synchronize the statistics across devices.

## When to ignore
When the model is always used with batch statistics.

## References
Ioffe 2017, *Batch Renormalization*. Wu & He 2018, *Group Normalization*, section 1.
Li et al. 2019, *Understanding the disharmony between dropout and batch normalization*.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, sgd
from normscope.diagnose.track import Track
from normscope.terms.finding import Evidence, Finding, Prescription
from normscope.terms.site import Site

APART = Threshold(
    0.5,
    "chosen: half a deviation carries a fifth of a normal channel's values across its mean (69% instead of 50%); no "
    "sound run of benchmarks/faults, of 145, is flagged",
    "deviations",
)
OTHER = Threshold(
    9.0, "chosen: three deviations of what training adds for one of the signal; dropout of one half doubles", "ratio"
)
SMALL = Threshold(16, "Wu & He 2018, table 2: below 16 images a worker batch normalization loses accuracy", "samples")
WARM = Threshold(
    30, "chosen: three times 1/momentum updates at torch's 0.1: before, running averages are still their start", "steps"
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with the norms at which the gap opens."""
    small = case.batch_size is not None and case.batch_size < SMALL.value
    gap = (_widest(case) if small else case.output_gap).after(int(WARM.value))
    late = gap.late()
    if not case.normalizes_over_batch or len(late) < 2 or not float(np.median(late.values)) > APART.value:
        return
    if (noisy := _acts_in_training(case, late)) is not None:
        yield noisy
        return
    opened = {norm: opening for norm in case.norms if (opening := case.opening(norm).last) > APART.value / 2}
    if not opened:
        return
    worst = sorted(opened, key=lambda norm: -opened[norm])
    yield RULE.finding(
        [norm.path for norm in worst],
        f"On the same batch and parameters {'a norm' if small else 'the model'} gives outputs {gap.last:.2f} "
        f"deviations apart in evaluation and training mode; the gap opens at {len(worst)} of {len(case.norms)} norms, "
        f"most at `{worst[0].place}`" + (f", whose statistics come from {case.batch_size} samples." if small else "."),
        Evidence(
            "eval_gap",
            gap.last,
            APART.value,
            tuple(int(step) for step in gap.steps),
            APART.unit,
            APART.source,
            tuple((norm.key, opened[norm]) for norm in worst),
        ),
        severity="warning" if small else "note",
        since_step=int(late.steps[0]),
        prescriptions=[remedies.without_batch(case), _recalibrated(case)] if small else [_recalibrated(case)],
    )


def _acts_in_training(case: Case, gap: Track) -> Finding | None:
    """What reaches a norm is another thing in training mode, in a model without dropout."""
    drops = case.experiment is None or any(
        isinstance(one, nn.modules.dropout._DropoutNd) and one.p for one in case.experiment.model.modules()
    )
    if drops or case.thrives:
        return None
    ratios = {norm: _variance_ratio(case, norm) for norm in case.norms if norm.spec and norm.spec.keeps_state}
    off = {norm: float(np.median(one.late().values)) for norm, one in ratios.items() if len(one.late()) > 1}
    first = next(iter(off), None)  # behind a norm over the batch the modes differ by what it makes
    if first is None or max(off[first], 1 / off[first]) <= OTHER.value:
        return None
    return RULE.finding(
        [first.path],
        f"On the same batch and parameters what `{first.place}` reads has {off[first]:.3g} times the variance in "
        f"training mode that it has in evaluation mode, and no dropout is in the model: something that acts in "
        f"training alone drowns the signal. The outputs of the two modes lie {gap.last:.2f} deviations apart.",
        OTHER.evidence("variance_ratio", off[first], ratios[first].steps, [(first.key, off[first])]),
        severity="error" if case.learns is False else "warning",
        since_step=int(ratios[first].steps[0]),
        prescriptions=[
            remedies.advice(
                f"look at what happens before `{first.place}` where `self.training` is true: noise and augmentation "
                "far below the deviation of the signal",
                "the norm's running statistics and the weights are made for what training shows them",
            )
        ],
    )


def _variance_ratio(case: Case, norm: Site) -> Track:
    training, evaluation = (dict(case.summaries(norm.at("input"), source)) for source in ("probe", "probe_eval"))
    steps = [step for step in training if step in evaluation and evaluation[step].std > 0 and training[step].std > 0]
    return Track.of(steps, ((training[step].std / evaluation[step].std) ** 2 for step in steps))


def _widest(case: Case) -> Track:
    """The gap at the norm whose output differs most between the modes, through the second half of the run."""
    tracks = [track for norm in case.norms if len((track := case.scalar(norm, "eval_gap")).late())]
    return max(tracks, key=lambda track: float(np.median(track.late().values)), default=Track.of((), ()))


def _recalibrated(case: Case) -> Prescription:
    norms = tuple(dict.fromkeys(norm.path for norm in case.norms if norm.spec and norm.spec.keeps_state))
    return remedies.recalibrate("evaluation mode then uses the population's statistics", norms)


def _normed(dropout: float = 0.0, width: int = 32, norm: type[nn.Module] = nn.BatchNorm1d) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(width, width, bias=False), norm(width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, 8))


SICK = (Scene(_normed, ("1",), batch=2, optimizer=sgd(0.01), steps=60),)
HEALTHY = (
    Scene(_normed, steps=60),
    Scene(partial(_normed, 0.5), steps=60),
    Scene(partial(_normed, 0.5, norm=nn.LayerNorm), batch=4, steps=60),
)

RULE = Rule(
    "NS302",
    "train_eval_gap",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"apart": APART, "other": OTHER, "small": SMALL, "warm": WARM},
    causes=("unrelated_targets",),
    symptom="eval_gap",
    shown_by=("eval_gap",),
    removal="modes",
    sick=SICK,
    healthy=HEALTHY,
)
