"""0.9: layer normalization reduces the shift sample by sample; weight normalization also reduces the shift of outputs.

The shift of the pre-activations over one epoch under `normscope.watch`, as in 0.3, with each norm against none. That
layer normalization suits recurrent networks is decided by 3.2.
"""

from __future__ import annotations

import math
from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.claims.seen import shifts
from normscope.report.parts import Axis, Curve, Curves
from normscope.terms.verdict import Effect

DEPTH = 6
NORMS = ("none", "weight_norm", "LayerNorm", "BatchNorm")


def cases(seeds: int) -> list[Case]:
    """Each norm in networks of two nonlinearities."""
    return [
        {"activation": name, "norm": norm, "seed": seed}
        for name in ("relu", "tanh")
        for norm in NORMS
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The mean move of each layer's pre-activations over one epoch, in their standard deviations at the start."""
    images, last = bench.images, bench.last_step(epochs=1)
    _, moved = bench.follow(
        lambda: mlp(images.x[0].numel(), depth=DEPTH, width=64, activation=case["activation"], norm=case["norm"]),
        shifts,
        at=lambda step: step == last,
        probe=images.test_x[:256],
        seed=case["seed"],
        rate=0.01,
        epochs=1,
    )
    return {"shift": moved}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Halvings of the shift, mean over layers, by each norm of the sentence."""
    effects = {}
    for name in outcomes.levels("activation"):
        for norm in NORMS[1:-1]:
            pairs = outcomes.where(activation=name).pairs("shift", {"norm": "none"}, {"norm": norm})
            effects[f"{name}, {norm}"] = paired([math.log2(sum(a) / sum(b)) for a, b in pairs], "halvings")
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """The shift of each layer of the tanh networks, mean of seeds."""
    layers = tuple(float(layer) for layer in range(1, DEPTH + 1))
    rows = {norm: outcomes.where(activation="tanh", norm=norm).column("shift") for norm in NORMS}
    return Curves(
        title="How far each layer's pre-activations moved in one epoch of a tanh network, mean of seeds.",
        x=Axis("layer"),
        y=Axis("standard deviations", log=True),
        curves=tuple(Curve(norm, layers, tuple(sum(at) / len(at) for at in zip(*row))) for norm, row in rows.items()),
    )


CLAIM = Claim(
    id="0.9",
    kind="training",
    en="Layer normalization and weight normalization also reduce the shift of a layer's output.",
    zh="层归一化、权重归一化同样能减少输出分布的变化。",
    source="000, section 4 (2)",
    protocol="Dense networks of 6 layers, one epoch of SGD with rate 0.01, momentum 0.9, batch 64; on a fixed batch "
    "the mean over units of |Δmean|/σ of the pre-activations, mean over layers; log₂ of the ratio without "
    "over with the norm, paired by seed.",
    decision=Decision(0.2, 0.0, "halvings of the shift", "13% less shift is the least that a user notices"),
    sizes={"quick": {"seeds": 15}, "full": {"seeds": 20}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("LayerNorm", "weight_norm", "NS204"),
)
