"""2.11: layer normalization mixes features of unlike units (color and size) and loses expressive power there.

A table whose class hangs on one feature of small numbers, beside features in units a thousand times larger. Layer
normalization of the raw features divides all by one deviation, that of the large ones; batch normalization divides
each by its own. With the features standardized first, both see the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import ACCURACY, averages, gained
from normscope.claims.data import Split
from normscope.claims.decision import Decision
from normscope.claims.models import mlp, norm_of
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Profile
from normscope.terms.verdict import Effect

FEATURES, SAMPLES = 8, 512


def cases(seeds: int, epochs: int) -> list[Case]:
    """Both norms on raw and on standardized features."""
    return [
        {"norm": norm, "units": units, "epochs": epochs, "seed": seed}
        for norm in ("BatchNorm", "LayerNorm")
        for units in ("unlike", "alike")
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The accuracy of a small network behind a norm of the features."""
    split = _table(case["seed"], case["units"])

    def build() -> nn.Sequential:
        return nn.Sequential(norm_of(case["norm"], FEATURES), mlp(FEATURES, depth=2, width=32, outputs=2))

    _, curve = bench.train(build, seed=case["seed"], rate=0.05, epochs=case["epochs"], split=split)
    return {"final": curve.final}


def _table(seed: int, units: str) -> Split:
    """Features of deviation 1, or every second one of deviation 1,000; the class is the sign of a sum."""
    x = torch.randn(2 * SAMPLES, FEATURES, generator=torch.Generator().manual_seed(seed))
    y = (x[:, 0] + x[:, 2] > 0).long()
    if units == "unlike":
        x[:, 1::2] *= 1000.0
    return Split(x[:SAMPLES], y[:SAMPLES], x[SAMPLES:], y[SAMPLES:])


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """What layer normalization loses against batch normalization."""
    arms = {"norm": "BatchNorm"}, {"norm": "LayerNorm"}
    return gained(outcomes, "final", *arms, by="units", label="{} units")


def draw(outcomes: Outcomes) -> Profile:
    """Accuracy of both norms."""
    title = "Accuracy on a table of features of like and unlike units, mean of seeds."
    return averages(outcomes, "final", "norm", "units", title=title, axis=ACCURACY)


CLAIM = Claim(
    id="2.11",
    kind="training",
    en="Layer normalization mixes features of unlike units and loses expressive power there.",
    zh="若各维特征的量纲不一致（如颜色和大小），LN 会使模型的表达能力下降。",
    source="002, section LN",
    protocol="512 made samples of 8 features, the class being the sign of the sum of two of them, every second feature "
    "in units 1,000 times larger or all alike; a norm of the features before a dense network of 2 layers, SGD "
    "with rate 0.05, momentum 0.9, batch 64; test accuracy with batch less with layer normalization, paired "
    "by seed.",
    decision=Decision(0.03, 0.0, "accuracy lost", "3 points are a loss that a user sees"),
    sizes={"quick": {"seeds": 5, "epochs": 8}, "full": {"seeds": 20, "epochs": 60}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("LayerNorm", "NS308"),
)
