"""2.6: each layer's update affects all others, and upper layers must adapt.

After Ioffe and Szegedy's own picture, as Santurkar et al. (2018, section 2.2) measure it: the gradient of a layer
before and after the layers below it have made their step of the same update. Where no layer touched another, nothing
would change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Curve, Curves
from normscope.terms.verdict import Effect

DEPTH, RATE = 6, 0.05
NORMS = ("none", "BatchNorm")


def cases(seeds: int) -> list[Case]:
    """With and without batch normalization."""
    return [{"norm": norm, "seed": seed} for norm in NORMS for seed in range(seeds)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """For each layer, how far its gradient turns when the layers below move, relative to it; after one epoch."""
    images = bench.images
    model, _ = bench.train(
        lambda: mlp(images.x[0].numel(), depth=DEPTH, width=64, norm=case["norm"]),
        seed=case["seed"],
        rate=0.01,
        epochs=1,
    )
    x, y = images.x[:128], images.y[:128]
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    before = _gradients(model, layers, x, y)
    turned = []
    for at, layer in enumerate(layers):
        now = _gradients(model, layers, x, y)[at]
        turned.append(((now - before[at]).norm() / before[at].norm()).item())
        with torch.no_grad():
            layer.weight -= RATE * before[at]
    return {"turned": turned}


def _gradients(model: nn.Module, layers: list[nn.Linear], x: Tensor, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(cross_entropy(model(x), y), [layer.weight for layer in layers]))


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The turn of the second and of the last layer's gradient."""
    effects = {}
    for norm in NORMS:
        rows = outcomes.where(norm=norm).column("turned")
        effects[f"{norm}: layer 2 sees layer 1"] = paired([row[1] for row in rows], "of the gradient")
        effects[f"{norm}: layer {DEPTH} sees those below"] = paired([row[DEPTH - 1] for row in rows], "of the gradient")
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """The turn over depth, mean of seeds."""
    layers = tuple(float(layer) for layer in range(1, DEPTH + 2))
    rows = {norm: outcomes.where(norm=norm).column("turned") for norm in NORMS}
    return Curves(
        title="How far each layer's gradient turns when the layers below make their step, mean of seeds.",
        x=Axis("layer"),
        y=Axis("share of the gradient", share=True),
        curves=tuple(Curve(norm, layers, tuple(sum(at) / len(at) for at in zip(*row))) for norm, row in rows.items()),
    )


CLAIM = Claim(
    id="2.6",
    kind="training",
    en="Each layer's update affects all others, so that upper layers must keep adapting.",
    zh="每层的更新都会影响到其他层，上层参数需要不断适应新的输入分布。",
    source="002, section on covariate shift, what it causes",
    protocol="Dense ReLU networks of 6 layers after one epoch of SGD; one full step (rate 0.05) on 128 images, made "
    "layer by layer from below: the change of each layer's gradient after all below it have moved, relative "
    "to the gradient before; paired by seed.",
    decision=Decision(
        0.05, 0.01, "share of the gradient", "a twentieth of the gradient in one step must be adapted to"
    ),
    sizes={"quick": {"seeds": 7}, "full": {"seeds": 30}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
)
