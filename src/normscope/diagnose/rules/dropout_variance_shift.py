"""Dropout before a norm changes the variance that the norm has learned, when it is switched off.

## What it finds
Norms with running statistics, right for training mode, whose input has another variance in evaluation mode: dropout
somewhere before them adds its own noise to the variance in training, by more than a quarter of it. The running
statistics hold the variance of training, so evaluation mode scales by the wrong number.

## Why it hurts
Dropout at rate p multiplies a value's second moment by 1/(1 − p) in training, and leaves it alone in evaluation. The
norm divides by the larger deviation in both modes. The layers behind see a distribution that they were not trained on.

## Evidence
The variance of the norm's input in training mode over that in evaluation mode, on the fixed batch.

## Prescription
Put dropout behind the last norm, or leave it out where norms are; recalibrate the running statistics with dropout off.

## When to ignore
When evaluation is better than training all the same.

## References
Li, Chen, Hu & Yang 2019, *Understanding the disharmony between dropout and batch normalization by variance shift*.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from torch import nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.diagnose.track import PERSISTENCE, Track
from normscope.terms.finding import Finding
from normscope.terms.site import Site

SHIFTED = Threshold(
    1.25,
    "chosen: a quarter of the variance is an eighth of the deviation, √1.25 = 1.12; dropout at rate 0.2 right before "
    "the norm gives it for a centred input, 1/(1 − p); Li et al. 2019 show that such shifts cost accuracy",
    "ratio",
)
RIGHT = Threshold(
    0.35, "1/√8, by which the mean of a batch of eight is off: statistics closer than that are right", "deviations"
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with every norm whose variance dropout changes."""
    ratios = {norm: _ratio(case, norm).late() for norm in case.norms if _keeps(case, norm)}
    value = {norm: float(np.median(track.values)) for norm, track in ratios.items() if len(track) >= PERSISTENCE}
    worst = sorted((norm for norm in value if value[norm] > SHIFTED.value), key=lambda norm: -value[norm])
    if not worst:
        return
    track = ratios[worst[0]]
    wrong = case.output_gap.last > 0.5
    yield RULE.finding(
        tuple(dict.fromkeys(norm.path for norm in worst)),
        f"What `{worst[0].place}` reads has {value[worst[0]]:.2f} times the variance in training mode that it has in "
        f"evaluation mode, on the same batch; so it is at {len(worst)} of {len(ratios)} norms with running statistics.",
        SHIFTED.evidence("variance_ratio", value[worst[0]], track.steps, [(norm.key, value[norm]) for norm in worst]),
        severity="warning" if wrong else "note",
        since_step=int(track.steps[0]),
        prescriptions=[
            remedies.advice("move dropout behind the last batch normalization", "no norm then learns its noise"),
            remedies.recalibrate("with dropout switched off they are those of evaluation mode"),
        ],
    )


def _keeps(case: Case, norm: Site) -> bool:
    """Whether the norm's running statistics are those of training mode."""
    error = case.scalar(norm, "running_stat_error").late()
    return bool(norm.spec and norm.spec.keeps_state and len(error)) and float(np.median(error.values)) < RIGHT.value


def _ratio(case: Case, norm: Site) -> Track:
    training, evaluation = (dict(case.summaries(norm.at("input"), source)) for source in ("probe", "probe_eval"))
    pairs = [(step, training[step].channels, evaluation[step].channels) for step in training if step in evaluation]
    known = [(step, a, b) for step, a, b in pairs if a is not None and b is not None and np.mean(b.var) > 0]
    return Track.of((step for step, _, _ in known), (float(np.mean(a.var) / np.mean(b.var)) for _, a, b in known))


def _network(rate: float, width: int = 32) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.Dropout(rate), nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 8))


SICK = (Scene(partial(_network, 0.5), ("2",), steps=80),)
HEALTHY = (Scene(partial(_network, 0.0), steps=80), Scene(partial(_network, 0.05), steps=80))

RULE = Rule(
    "NS312",
    "dropout_variance_shift",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"shifted": SHIFTED, "right": RIGHT},
    causes=("train_eval_gap",),
    symptom="eval_gap",
    removal="dropout",
    sick=SICK,
    healthy=HEALTHY,
)
