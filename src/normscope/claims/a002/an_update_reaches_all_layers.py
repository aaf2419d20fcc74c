"""2.6: each layer's update affects all others, and upper layers must adapt.

After Ioffe and Szegedy's own picture, as Santurkar et al. (2018, section 2.2) measure it: the gradient of a layer
before and after the layers below it have made their step of the same update, by the measure `gradient_shift` of
`normscope.watch`. Where no layer touched another, nothing would change.
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
from normscope.record.reader import Record
from normscope.report.parts import Axis, Curve, Curves
from normscope.terms.verdict import Effect

DEPTH, RATE = 4, 0.05  # the measure looks at eight layers: four pairs of a linear map and its norm
NORMS = ("none", "BatchNorm")


def cases(seeds: int) -> list[Case]:
    """With and without batch normalization."""
    return [{"norm": norm, "seed": seed} for norm in NORMS for seed in range(seeds)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """For each layer from the second, how far its gradient turns when those below move, relative to it."""
    images, last = bench.images, bench.last_step(epochs=1)

    def read(record: Record) -> list[float]:
        sites = [site for site in record.sites if site.role == "producer" and site.what == "output"]
        layers = [site.path for site in sites if "gradient_shift" in record.quantities(site)]
        turned = [record.series(path, "gradient_shift").values[-1] for path in layers]
        lengths = [
            math.hypot(
                *(
                    record.series(f"{path}@{name}:gradient", "gradient_norm", source="probe").values[-1]
                    for name in ("weight", "bias")
                )
            )
            for path in layers
        ]
        return [float(turn / length) for turn, length in zip(turned, lengths)]

    _, turned = bench.follow(
        lambda: mlp(images.x[0].numel(), depth=DEPTH, width=64, norm=case["norm"]),
        read,
        at=lambda step: step == last,
        probe=(images.x[:128], images.y[:128]),
        measures=("gradient", "gradient_shift"),
        seed=case["seed"],
        rate=RATE,
        epochs=1,
    )
    return {"turned": turned}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The turn of the second and of the last layer's gradient."""
    effects = {}
    for norm in NORMS:
        rows = outcomes.where(norm=norm).column("turned")
        effects[f"{norm}: layer 2 sees layer 1"] = paired([row[0] for row in rows], "of the gradient")
        effects[f"{norm}: layer {DEPTH} sees those below"] = paired([row[DEPTH - 2] for row in rows], "of the gradient")
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """The turn over depth, mean of seeds."""
    layers = tuple(float(layer) for layer in range(2, DEPTH + 2))
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
    protocol="Dense ReLU networks of 4 layers, the last step of one epoch of SGD with rate 0.05, momentum 0.9 and "
    "batch 64, under normscope.watch: the change of each layer's gradient on 128 images after all layers below it have "
    "made their step, relative to the gradient before; paired by seed.",
    decision=Decision(
        0.05, 0.01, "share of the gradient", "a twentieth of the gradient in one step must be adapted to"
    ),
    sizes={"quick": {"seeds": 15}, "full": {"seeds": 30}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("NS204", "NS214"),
)
