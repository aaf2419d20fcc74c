"""Running statistics are NaN, infinite, zero or negative, so evaluation mode divides by nothing.

## What it finds
Norms over the batch of which some channel has a running mean or variance that is not finite, or a running variance of
zero or below while the channel varies on the fixed batch.

## Why it hurts
Training mode does not read the running statistics, and goes on as if nothing were wrong. Evaluation gives NaN, or
values blown up by 1/√ε, three hundred times at torch's ε. One bad batch is enough: an average never forgets a NaN.

## Evidence
The share of unusable channels, at each probe.

## Prescription
Take the running statistics anew from some hundred batches; find the batch that held NaN; keep the buffers in float32.

## When to ignore
When the model is never run in evaluation mode.

## References
Ioffe & Szegedy 2015, *Batch Normalization*, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Scene
from normscope.diagnose.track import Track
from normscope.terms.finding import Finding

ANY = Threshold(0.0, "one channel is enough: the layers behind mix all channels (IEEE 754-2019, section 6.2)", "share")


def check(case: Case) -> Iterator[Finding]:
    """One finding with every norm that has unusable running statistics."""
    tracks = {norm: case.scalar(norm, "running_broken") for norm in case.norms}
    bad = {norm: track for norm, track in tracks.items() if len(track) and track.values[-1] > ANY.value}
    if not bad:
        return
    worst = sorted(bad, key=lambda norm: -bad[norm].values[-1])
    track = bad[worst[0]]
    yield RULE.finding(
        tuple(dict.fromkeys(norm.path for norm in worst)),
        f"The running statistics of `{worst[0].place}` are not finite, zero or negative in {track.values[-1]:.0%} of "
        f"its channels, since step {_since(track)}; {len(bad)} of {len(tracks)} norms have such channels.",
        ANY.evidence(
            "running_broken", track.values[-1], track.steps, [(norm.key, bad[norm].values[-1]) for norm in worst]
        ),
        since_step=_since(track),
        prescriptions=[
            remedies.recalibrate("the weights never read the running statistics, and are as good as before"),
            remedies.advice("find the batch that held NaN or infinity: `torch.isfinite(inputs).all()`"),
        ],
    )


def _since(track: Track) -> int:
    """The first step from which on it was so at every probe."""
    usable = np.flatnonzero(track.values <= ANY.value)
    return int(track.steps[int(usable[-1]) + 1 if len(usable) else 0])


class _Poisoned(nn.Module):
    """Something writes into the running variance, as an exchange of weights or a cast to float16 can."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 8)
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        if self.value <= 0 and self.norm.running_var is not None:
            self.norm.running_var = self.norm.running_var.clone()  # the backward pass needs the old one
            self.norm.running_var[3] = self.value
        return self.last(x.relu())


SICK = (Scene(lambda: _Poisoned(-1.0), ("norm",), steps=26), Scene(lambda: _Poisoned(0.0), ("norm",), steps=26))
HEALTHY = (Scene(lambda: _Poisoned(1.0), steps=26),)

RULE = Rule(
    "NS303",
    "broken_running_stats",
    "error",
    "record",
    check,
    __doc__,
    thresholds={"any": ANY},
    causes=("stale_running_stats", "train_eval_gap", "nonfinite_values"),
    symptom="running_broken",
    removal="running",
    sick=SICK,
    healthy=HEALTHY,
)
