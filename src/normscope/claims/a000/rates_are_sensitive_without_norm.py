"""0.4: without normalization a large rate (0.1) shakes the distributions and explodes gradients; 0.001 is slow.

What shakes is measured under `normscope.watch`, at two steps of every twenty: the largest gradient over the first one,
and the largest step-to-step move of the last hidden layer's pre-activations, in their standard deviations.
"""

from __future__ import annotations

import math
from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import accuracy_by, told
from normscope.claims.decision import Decision
from normscope.claims.interval import bootstrap
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.claims.seen import on_probe, pre_activations, unit_shift
from normscope.record.reader import Record
from normscope.report.parts import Curves
from normscope.terms.verdict import Effect

RATES = (0.001, 0.01, 0.1)
DEPTHS = (4, 16)
TARGET = 0.7
EVERY = 20  # two steps in a row of each so many are looked at
_BROKEN = 1e6  # stands for a gradient or a move that is no number any more


def cases(seeds: int, epochs: int) -> list[Case]:
    """Networks of two depths at each rate."""
    return [
        {"depth": depth, "rate": rate, "epochs": epochs, "seed": seed}
        for depth in DEPTHS
        for rate in RATES
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The curve, the largest gradient over the first, and the largest move of the last hidden layer in a step."""
    images = bench.images

    def read(record: Record) -> tuple[list[float], list[float]]:
        paths = [site for site in record.sites if site.what == "gradient" and site.name]
        rows = [record.series(site, "gradient_norm", source="live").values for site in paths]
        looks = on_probe(record, pre_activations(record)[-1])
        moves = [unit_shift(now, then) for then, now in zip(looks[::2], looks[1::2])]
        return [math.sqrt(sum(value**2 for value in step)) for step in zip(*rows)], moves

    curve, (gradients, moves) = bench.follow(
        lambda: mlp(images.x[0].numel(), depth=case["depth"], width=64),
        read,
        at=lambda step: step % EVERY < 2,
        probe=images.test_x[:128],
        live=True,
        seed=case["seed"],
        rate=case["rate"],
        epochs=case["epochs"],
    )
    return {
        **told(curve),
        "explosion": _bounded(max(map(_bounded, gradients)) / gradients[0]),
        "move": max(map(_bounded, moves)),
        "epochs_to": curve.epochs_to(TARGET),
    }


def _bounded(value: float) -> float:
    return min(value, _BROKEN) if math.isfinite(value) else _BROKEN


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Decades of the explosion and of the moves, and decades of epochs that the small rate needs more."""
    effects = {}
    for depth in DEPTHS:
        rows = outcomes.where(depth=depth)
        large = rows.where(rate=0.1)
        effects[f"{depth} layers: 0.1 explodes gradients"] = bootstrap(
            [math.log10(value) for value in large.column("explosion")], unit="decades"
        )
        moves = [math.log10(one / other) for one, other in rows.pairs("move", {"rate": 0.1}, {"rate": 0.01})]
        effects[f"{depth} layers: 0.1 shakes more than 0.01"] = bootstrap(moves, unit="decades")
        epochs = [math.log10(one / other) for one, other in rows.pairs("epochs_to", {"rate": 0.001}, {"rate": 0.01})]
        effects[f"{depth} layers: 0.001 is slower than 0.01"] = bootstrap(epochs, unit="decades")
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """Accuracy at each rate."""
    return accuracy_by(outcomes, "depth", "rate", title="Accuracy without normalization at three rates, mean of seeds.")


CLAIM = Claim(
    id="0.4",
    kind="training",
    en="Without normalization a large rate (0.1) shakes the distributions and explodes gradients, and a small one "
    "(0.001) is slow.",
    zh="不做归一化时，学习率过高（0.1）会使分布剧烈震荡、梯度爆炸，过低（0.001）则收敛过慢。",
    source="000, section 3, learning rate",
    protocol="Dense ReLU networks of 4 and 16 layers, He's initialization, SGD with momentum 0.9 and batch 64; the "
    "largest gradient norm over the first; the largest move of the last hidden pre-activations in one step, "
    "rate 0.1 against 0.01; epochs to 70% accuracy, rate 0.001 against 0.01 (one more than there were where "
    "it is never reached).",
    decision=Decision(0.5, 0.15, "decades", "a factor of 3 is a shock or a delay; a factor of 1.4 is not"),
    sizes={"quick": {"seeds": 5, "epochs": 8}, "full": {"seeds": 10, "epochs": 50}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("NS210", "NS211", "NS207"),
)
