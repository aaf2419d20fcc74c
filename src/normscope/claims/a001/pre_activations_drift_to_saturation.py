"""1.2: pre-activations drift toward the saturated ends with depth and training; the lower layers' gradients vanish.

Sigmoid and tanh networks without normalization: the saturated share of each layer's pre-activations before and after
the training, and the gradient of the first layer's weights over that of the last hidden one's, as `normscope.watch`
records them on a fixed batch.
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
from normscope.claims.seen import saturated
from normscope.record.reader import Record
from normscope.report.parts import Axis, Curve, Curves
from normscope.terms.verdict import Effect

DEPTH = 6
FUNCTIONS = ("sigmoid", "tanh")


def cases(seeds: int, epochs: int) -> list[Case]:
    """Both nonlinearities."""
    return [{"activation": name, "epochs": epochs, "seed": seed} for name in FUNCTIONS for seed in range(seeds)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """Saturated shares by layer and the ratio of gradients, before and after."""
    images, last = bench.images, bench.last_step(case["epochs"])
    curve, told = bench.follow(
        lambda: mlp(images.x[0].numel(), depth=DEPTH, width=64, activation=case["activation"]),
        _state,
        at=lambda step: step == last,
        probe=(images.test_x[:256], images.test_y[:256]),
        measures=("activation", "gradient"),
        seed=case["seed"],
        rate=0.1,
        epochs=case["epochs"],
    )
    return {**told, "final": curve.final}


def _state(record: Record) -> dict[str, Any]:
    """The saturated share of each layer at both looks; decades from the last hidden layer's gradient to the first's."""
    layers = [site.path for site in record.sites if site.role == "producer" and site.what == "output"][:-1]
    first, last = (
        float(record.series(f"{path}@weight:gradient", "gradient_norm", source="probe").values[-1])
        for path in (layers[0], layers[-1])
    )
    before, after = zip(*saturated(record))
    return {"before": before, "after": after, "lost": math.log10(last / max(first, 1e-300))}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The growth of the saturated share with training and with depth; the decades lost on the way down."""
    effects = {}
    for name in FUNCTIONS:
        rows = outcomes.where(activation=name)
        before, after = (rows.column(when) for when in ("before", "after"))
        grown = [sum(new) / DEPTH - sum(old) / DEPTH for old, new in zip(before, after)]
        effects[f"{name}: more saturated after training"] = paired(grown, "share")
        effects[f"{name}: more saturated with depth"] = paired([row[-1] - row[0] for row in after], "share")
        effects[f"{name}: the first layer's gradient is smaller"] = paired(rows.column("lost"), "decades")
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """The saturated share of each layer, mean of seeds."""
    curves = []
    for name in FUNCTIONS:
        for when in ("before", "after"):
            rows = outcomes.where(activation=name).column(when)
            layers = tuple(float(layer) for layer in range(1, DEPTH + 1))
            curves.append(Curve(f"{name}, {when}", layers, tuple(sum(at) / len(at) for at in zip(*rows))))
    return Curves(
        title="The saturated share of each layer's pre-activations before and after the training, mean of seeds.",
        x=Axis("layer"),
        y=Axis("saturated", share=True),
        curves=tuple(curves),
    )


CLAIM = Claim(
    id="1.2",
    kind="training",
    en="Pre-activations drift toward the saturated ends with depth and during training, and the lower layers' "
    "gradients vanish.",
    zh="随着网络加深和训练进行，激活输入的分布逐渐靠近非线性函数的饱和区，低层梯度消失。",
    source="001, section 2",
    protocol="Dense networks of 6 layers without normalization, Xavier's weights, SGD with rate 0.1, momentum 0.9, "
    "batch 64: on a fixed batch, the share of pre-activations where the slope is below a twentieth of the "
    "steepest, after less before the training and last less first layer; log₁₀ of the last hidden layer's "
    "gradient over the first's after the training.",
    decision=Decision(0.05, 0.0, "share, or decades", "5 points of share, or a gradient 12% smaller"),
    sizes={"quick": {"seeds": 5, "epochs": 6}, "full": {"seeds": 10, "epochs": 40}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("NS202", "NS201"),
)
