"""0.3: shift accumulates with depth: a small shift in layer 1 has grown by layer 10, and the variance multiplies.

A network without normalization is trained under `normscope.watch`, which sends a fixed batch through it at the first
and at the last step. The shift of a layer is how far the pre-activations of its units moved, in their own standard
deviations at the start.
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
from normscope.claims.seen import on_probe, pre_activations, shifts
from normscope.record.reader import Record
from normscope.report.parts import Axis, Curve, Curves
from normscope.terms.verdict import Effect

DEPTH = 10
FUNCTIONS = ("relu", "tanh", "sigmoid")


def cases(seeds: int, rate: float) -> list[Case]:
    """Each nonlinearity."""
    return [{"activation": name, "rate": rate, "seed": seed} for name in FUNCTIONS for seed in range(seeds)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """Shift and change of variance of each layer over one epoch, on a fixed batch."""
    images, last = bench.images, bench.last_step(epochs=1)

    def read(record: Record) -> dict[str, Any]:
        looks = [[look.channels for look in on_probe(record, site)] for site in pre_activations(record)]
        return {
            "shift": shifts(record),
            "variance": [math.log2(last.var.mean() / first.var.mean()) for first, last in looks if first and last],
        }

    _, told = bench.follow(
        lambda: mlp(images.x[0].numel(), depth=DEPTH, width=64, activation=case["activation"]),
        read,
        at=lambda step: step == last,
        probe=images.test_x[:256],
        seed=case["seed"],
        rate=case["rate"],
        epochs=1,
    )
    return told


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Doublings of the shift, and of the growth of the variance, from layer 1 to layer 10."""
    effects = {}
    for name in FUNCTIONS:
        rows = outcomes.where(activation=name)
        effects[f"{name}: shift of the mean"] = paired(
            [math.log2(row[-1] / row[0]) for row in rows.column("shift")], "doublings"
        )
        effects[f"{name}: change of the variance"] = paired(
            [abs(row[-1]) - abs(row[0]) for row in rows.column("variance")], "doublings"
        )
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """The shift of each layer, mean of seeds."""
    layers = tuple(float(layer) for layer in range(1, DEPTH + 1))
    rows = {name: outcomes.where(activation=name).column("shift") for name in FUNCTIONS}
    return Curves(
        title="How far each layer's pre-activations moved in one epoch, mean of seeds.",
        x=Axis("layer"),
        y=Axis("standard deviations", log=True),
        curves=tuple(Curve(name, layers, tuple(sum(at) / len(at) for at in zip(*row))) for name, row in rows.items()),
    )


CLAIM = Claim(
    id="0.3",
    kind="training",
    en="Shift accumulates with depth: a small shift in layer 1 has grown by layer 10, and the variance multiplies.",
    zh="偏移随深度累积：第一层的小偏移到第十层会被放大，方差放大数倍。",
    source="000, section 2, third cause",
    protocol="Dense networks of 10 layers without normalization, one epoch of SGD with momentum 0.9 and batch 64; on a "
    "fixed batch of test images the mean over units of |Δmean|/σ, and log₂ of the ratio of variances; layer 10 against "
    "layer 1.",
    decision=Decision(1.0, 0.0, "doublings from layer 1 to layer 10", "twice the shift has grown, no more has not"),
    sizes={"quick": {"seeds": 5, "rate": 0.01}, "full": {"seeds": 20, "rate": 0.01}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("NS204", "NS214"),
)
