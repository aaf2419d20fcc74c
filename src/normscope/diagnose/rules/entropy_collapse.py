"""Attention puts all of its weight on one place, and can no longer learn where to look.

## What it finds
Attention whose entropy on the fixed batch lies below a twentieth of the greatest (all weight on one place is 0, even
weight on all is 1) through the second half of a run that has not lost half of its loss. Causal attention counts with
the lower entropy that its mask leaves it, and softmaxes that end the network are left out.

## Why it hurts
A softmax that is sure has no gradient: queries and keys stop learning. Attention becomes a fixed lookup, a small change
of a key flips it from one place to another, and training becomes unstable.

## Evidence
−Σ p log p of each row of the attention over the log of its length, the mean over rows and heads.

## Prescription
Normalize queries and keys, scale their product by 1/√d, draw the projections smaller, warm the learning rate up.

## When to ignore
When attention is meant to be hard, or copies.

## References
Zhai et al. 2023, *Stabilizing transformer training by preventing attention entropy collapse*.
Dehghani et al. 2023, *Scaling vision transformers to 22 billion parameters*, section 2 (normalized queries and keys).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from normscope.diagnose import remedies
from normscope.diagnose.case import Case
from normscope.diagnose.rule import Rule, Threshold
from normscope.diagnose.scene import Data, Scene, sgd
from normscope.terms.finding import Finding

COLLAPSED = Threshold(
    0.05,
    "chosen: at 0.05 of log n the weight of a row is on n^0.05 places, 1.2 of 64; Zhai et al. 2023: low entropy of "
    "attention goes with training that is not stable",
    "share",
)


def check(case: Case) -> Iterator[Finding]:
    """One finding with every attention that has collapsed."""
    last = max((site.depth for site in case.sites), default=-1)
    inner = [site for site in case.sites if site.depth < last]
    tracks = {site: track for site in inner if len(track := case.scalar(site, "entropy").late()) > 1}
    entropy = {site: float(np.median(track.values)) for site, track in tracks.items()}
    worst = sorted((site for site in entropy if entropy[site] < COLLAPSED.value), key=lambda site: entropy[site])
    if not worst or case.thrives:
        return
    track = case.scalar(worst[0], "entropy")
    yield RULE.finding(
        tuple(dict.fromkeys(site.path for site in worst)),
        f"The attention of `{worst[0].place}` has {entropy[worst[0]]:.3f} of the greatest entropy, and "
        f"{len(worst)} of {len(entropy)} are below {COLLAPSED.value}: nearly all weight is on one place.",
        COLLAPSED.evidence("entropy", entropy[worst[0]], track.steps, [(site.key, entropy[site]) for site in worst]),
        since_step=track.since(below=COLLAPSED.value) or int(track.steps[0]),
        prescriptions=[
            remedies.advice(
                "normalize queries and keys before their product: `nn.LayerNorm(head_dim)` or `nn.RMSNorm`"
            ),
            remedies.advice("divide the scores by `head_dim ** 0.5`, and draw the projections with `xavier_uniform_`"),
            remedies.advice("warm the learning rate up over the first hundreds of steps"),
        ],
    )


class _Attention(nn.Module):
    """One head over eight tokens of four features, with scores times `scale`."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.embed, self.keys, self.queries = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.weights, self.head = nn.Softmax(-1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        scores = self.queries(x) @ self.keys(x).transpose(1, 2)
        return self.head((self.weights(self.scale * scores) @ x).mean(1))


def _tokens() -> Data:
    inputs = torch.randn(256, 8, 4)
    return inputs, inputs.mean(1).argmax(1)


SICK = (Scene(lambda: _Attention(100.0), ("weights",), data=_tokens, optimizer=sgd(1e-3)),)
HEALTHY = (Scene(lambda: _Attention(0.25), data=_tokens, optimizer=sgd(0.1)),)

RULE = Rule(
    "NS221",
    "entropy_collapse",
    "warning",
    "record",
    check,
    __doc__,
    thresholds={"collapsed": COLLAPSED},
    causes=(
        "unrelated_targets",
        *("rank_collapse", "vanishing_gradient", "unmoved_layer", "unread_input"),
    ),
    sick=SICK,
    healthy=HEALTHY,
)
