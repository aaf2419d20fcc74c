"""1.2: pre-activations drift toward the saturated ends with depth and training; the lower layers' gradients vanish.

Sigmoid and tanh networks without normalization: the saturated share of each layer's pre-activations before and after
the training, and the gradient of the first layer over that of the last hidden one.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp, pre_activations
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Curve, Curves
from normscope.terms.activations import ACTIVATIONS
from normscope.terms.verdict import Effect

DEPTH = 6
FUNCTIONS = ("sigmoid", "tanh")


def cases(seeds: int, epochs: int) -> list[Case]:
    """Both nonlinearities."""
    return [{"activation": name, "epochs": epochs, "seed": seed} for name in FUNCTIONS for seed in range(seeds)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """Saturated shares by layer and the ratio of gradients, before and after."""
    images, name = bench.images, case["activation"]
    fresh: list[dict[str, Any]] = []

    def build() -> nn.Sequential:
        model = mlp(images.x[0].numel(), depth=DEPTH, width=64, activation=name)
        fresh.append(_state(model.to(bench.device), name, bench))
        return model

    model, curve = bench.train(build, seed=case["seed"], rate=0.1, epochs=case["epochs"])
    assert isinstance(model, nn.Sequential)
    return {"before": fresh[0], "after": _state(model, name, bench), "final": curve.final}


def _state(model: nn.Sequential, name: str, bench: Bench) -> dict[str, Any]:
    """The saturated share of each layer, and decades from the last hidden layer's gradient down to the first's."""
    row, images = ACTIVATIONS[name], bench.images
    model.zero_grad()
    cross_entropy(model(images.x[:256]), images.y[:256]).backward()
    linears = [layer for layer in model if isinstance(layer, nn.Linear)][:-1]
    norms = [float(layer.weight.grad.norm()) if layer.weight.grad is not None else math.nan for layer in linears]
    model.zero_grad()
    given = pre_activations(model, images.test_x[:256])
    ends = [((layer < (row.low or 0)) | (layer > (row.high or 0))).float().mean().item() for layer in given]
    spread = [layer.std().item() for layer in given]
    return {"saturated": ends, "spread": spread, "lost": math.log10(norms[-1] / max(norms[0], 1e-300))}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The growth of the saturated share with training and with depth; the decades lost on the way down."""
    effects = {}
    for name in FUNCTIONS:
        rows = outcomes.where(activation=name)
        before, after = ([row["saturated"] for row in rows.column(when)] for when in ("before", "after"))
        grown = [sum(new) / DEPTH - sum(old) / DEPTH for old, new in zip(before, after)]
        effects[f"{name}: more saturated after training"] = paired(grown, "share")
        effects[f"{name}: more saturated with depth"] = paired([row[-1] - row[0] for row in after], "share")
        lost = [row["lost"] for row in rows.column("after")]
        effects[f"{name}: the first layer's gradient is smaller"] = paired(lost, "decades")
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """The saturated share of each layer, mean of seeds."""
    curves = []
    for name in FUNCTIONS:
        for when in ("before", "after"):
            rows = [row["saturated"] for row in outcomes.where(activation=name).column(when)]
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
)
