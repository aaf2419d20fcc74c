"""A norm over the batch sees batches of different kinds, and averages their statistics.

## What it finds
Norms over the batch whose batches lie further apart than independent samples would: the squared distance of two batch
means is more than four times what the scatter of samples within the batches gives, and the means vary by more than a
quarter of a deviation. So it is with batches of one class, one domain, one camera or one video each. And norms whose
running average lies half a deviation off the fixed batch although it has forgotten its start and the batch's own
statistics hardly move while it averages: then the batches that were not sampled are of another kind.

## Why it hurts
In training each kind is normalized by its own statistics, and looks standardized. At inference all kinds are normalized
by the average of all, which fits none; and the network could learn the kind of a batch from its neighbours.

## Evidence
The squared distance between the means of the training batch and the fixed batch, over what independent samples of the
same scatter would give, at the same parameters. Or the distance between the running statistics and those of the fixed
batch, beside the way that the latter went in the time over which the former average.

## Prescription
Shuffle, and draw each batch from all kinds; where kinds must stay apart, give each its own normalization (domain-
specific batch norm), or normalize each sample by itself.

## When to ignore
When the fixed batch is of other data (other augmentation, a validation set) on purpose.

## References
Ioffe 2017, *Batch Renormalization*, section 4.3 (batches that are no independent samples).
Li et al. 2017, *Revisiting batch normalization for practical domain adaptation*; Chang et al. 2019, *Domain-specific
batch normalization*. Wu & Johnson 2021, *Rethinking "Batch" in BatchNorm*, section 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case, moved
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene, clusters
from normscope.diagnose.track import PERSISTENCE, Track
from normscope.terms.finding import Finding, Prescription
from normscope.terms.site import Site

EXCESS = Threshold(
    4.0,
    "chosen: independent samples give 1, with a deviation of √(2/C) over C channels (χ²): four is three deviations off "
    "for two channels, and is asked of the median over half a run",
    "ratio",
)
FELT = Threshold(
    0.25,
    "chosen: with large batches the ratio finds differences too small to matter; the mean of 16 independent samples "
    "is off by 1/√16 anyway",
    "deviations",
)
OFF = Threshold(
    0.5,
    "chosen: what `stale_running_stats` calls off: a half deviation carries a fifth of a channel over zero",
    "deviations",
)
RIPE = Threshold(
    5.0, "chosen: after five times 1/momentum updates e^-5 of the start is left, under a hundredth", "updates"
)
FEWEST = Threshold(
    16, "chosen: the mean and deviation of 16 values are themselves off by √(1/16 + 1/32) = 0.3 deviations", "values"
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with every norm whose batches are of different kinds."""
    excess: dict = {}
    for norm in _dividing(case):
        track, noise = (case.scalar(norm, name).late() for name in ("batch_stat_excess", "batch_stat_noise"))
        if len(track) >= PERSISTENCE and float(np.median(noise.values)) > FELT.value:
            excess[norm] = track
    value = {norm: float(np.median(track.values)) for norm, track in excess.items()}
    worst = sorted((norm for norm in value if value[norm] > EXCESS.value), key=lambda norm: -value[norm])
    if not worst:
        yield from _unseen(case)
        return
    track = excess[worst[0]]
    yield RULE.finding(
        tuple(dict.fromkeys(norm.path for norm in worst)),
        f"Batches of `{worst[0].place}` lie {value[worst[0]]:.0f} times as far apart (in squares) as independent "
        f"samples would, and so at {len(worst)} of {len(case.norms)} norms: they are of different kinds.",
        EXCESS.evidence("batch_stat_excess", value[worst[0]], track.steps, [(norm.key, value[norm]) for norm in worst]),
        since_step=int(track.steps[0]),
        prescriptions=_prescriptions(case),
    )


def _dividing(case: Case) -> list[Site]:
    """The norms before the first that divides by its eps: beside that, distances in deviations say nothing."""
    soft = [norm.depth for norm in case.norms if len(guard := case.guard(norm)) and guard.last > 1]
    return [norm for norm in case.norms if norm.depth < min(soft, default=norm.depth + 1)]


def _prescriptions(case: Case) -> list[Prescription]:
    return [
        remedies.advice("shuffle, and draw each batch from all classes and sources: `DataLoader(..., shuffle=True)`"),
        remedies.advice(
            "where domains must stay apart, give each its own statistics: `normscope.domain_banks(model, domains)`",
            "an average over domains fits none of them, however well it is taken",
        ),
        remedies.without_batch(case),
    ]


def _unseen(case: Case) -> Iterator[Finding]:
    """Norms whose running averages are of other batches than those that were looked at."""
    found: dict[Site, Track] = {}
    for norm in _dividing(case):
        momentum = norm.spec.momentum if norm.spec and norm.spec.train_from == "batch" else None
        if not momentum or RIPE.value > momentum * float(case.steps[-1]):
            continue
        error = case.scalar(norm, "running_stat_error").after(int(RIPE.value / momentum))
        enough = case.values_per_channel(norm) >= FEWEST.value
        if enough and error.since(above=OFF.value) is not None and _still(case, norm, momentum, error.last):
            found[norm] = error
    if not found:
        return
    worst = sorted(found, key=lambda norm: -found[norm].last)
    first = found[worst[0]]
    yield RULE.finding(
        tuple(dict.fromkeys(norm.path for norm in worst)),
        f"The running statistics of `{worst[0].place}` lie {first.last:.2f} deviations off those of the fixed batch, "
        f"and so, by more than {OFF.value:g}, at {len(found)} of {len(case.norms)} norms, while the batch's own hardly "
        "move: what they average is of another kind.",
        OFF.evidence("running_stat_error", first.last, first.steps, [(norm.key, found[norm].last) for norm in worst]),
        since_step=int(first.steps[0]),
        prescriptions=_prescriptions(case),
    )


def _still(case: Case, norm: Site, momentum: float, error: float) -> bool:
    """Whether the fixed batch's statistics move by less than half the error in the time that the average remembers."""
    told = [(step, one) for step, one in case.summaries(norm.at("input"), "probe") if one.channels is not None]
    late = [(step, one) for step, one in told if step >= case.steps[-1] // 2]
    moves = [
        moved(before, after) * min(1.0, 1 / momentum / (step - earlier))
        for (earlier, before), (step, after) in pairwise(late)
    ]
    return len(moves) >= PERSISTENCE and float(np.median(moves)) < error / 2


def _normed(width: int = 32) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 8))


SICK = (Scene(_normed, ("1",), data=partial(clusters, 2048), steps=60, sorted=True),)
HEALTHY = (Scene(_normed, steps=60), Scene(_normed, steps=60, batch=64))

RULE = Rule(
    "NS305",
    "mixed_domains",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"excess": EXCESS, "felt": FELT, "off": OFF, "ripe": RIPE, "fewest": FEWEST},
    causes=("unrelated_targets", "stale_running_stats", "train_eval_gap", "noisy_batch_statistics"),
    sick=SICK,
    healthy=HEALTHY,
)
