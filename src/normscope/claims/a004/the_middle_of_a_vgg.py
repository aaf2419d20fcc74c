"""4.7: the picture: what a VGG-16's middle convolutions give out over the training, without and with a norm.

The picture is read as its caption is meant: with the norm the distributions stay where they are. All is read from the
record of `normscope.watch`: the quantiles of a middle convolution's output, behind its norm where there is one, on a
fixed batch, and the shift of the middle ones from look to look. A plain VGG-16 from He's weights does not learn the
digits at all, and what does not learn does not move; so the same is told of a network of six convolutions that does.
"""

from __future__ import annotations

import math
from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import vgg, vgg16
from normscope.claims.outcomes import Case, Outcomes
from normscope.claims.seen import pre_activations
from normscope.record.quantities import QUANTILES
from normscope.record.reader import Record
from normscope.report.parts import Axis, Curve, Curves
from normscope.terms.verdict import Effect

NORMS = ("none", "BatchNorm")
MIDDLE = {"VGG-16": range(4, 10), "six convolutions": range(2, 4)}
SHOWN = (0.05, 0.25, 0.5, 0.75, 0.95)
LOOKS = 12


def cases(seeds: int, epochs: int, width: int) -> list[Case]:
    """Both networks with and without the norm."""
    return [
        {"net": net, "norm": norm, "epochs": epochs, "width": width, "seed": seed}
        for net in MIDDLE
        for norm in NORMS
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """Quantiles of the convolution in the middle at each look, and the mean shift of all middle ones between looks."""
    images, last = bench.images, bench.last_step(case["epochs"])
    spacing, middle = max(1, last // LOOKS), MIDDLE[case["net"]]

    def build() -> Any:
        channels, side = images.x.shape[1:3]
        if case["net"] == "VGG-16":
            return vgg16(channels, side, width=case["width"], norm=case["norm"])
        return vgg(channels, depth=6, width=case["width"], norm=case["norm"])

    def read(record: Record) -> dict[str, Any]:
        sites = [pre_activations(record)[at] for at in middle]
        seen = record.series(sites[len(sites) // 2], "quantiles", source="probe")
        columns = [QUANTILES.index(level) for level in SHOWN]
        moved = [record.series(site, "internal_shift").values.tolist() for site in sites]
        shift = [value for row in moved for value in row if math.isfinite(value)]
        return {
            "steps": seen.steps.tolist(),
            "quantiles": seen.values[:, columns].T.tolist(),
            "shift": sum(shift) / len(shift),
        }

    curve, told = bench.follow(
        build,
        read,
        at=lambda step: step % spacing == 0,
        probe=images.test_x[:128],
        seed=case["seed"],
        rate=0.01,
        epochs=case["epochs"],
    )
    return {**told, "final": curve.final}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Halvings of the shift by the norm in each network."""
    effects = {}
    for net in MIDDLE:
        pairs = outcomes.where(net=net).pairs("shift", {"norm": "none"}, {"norm": "BatchNorm"})
        effects[net] = paired([math.log2(plain / normed) for plain, normed in pairs], "halvings")
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """The median and the outer twentieths of VGG-16's middle convolution over the training, one run of each kind."""
    curves = []
    for norm in NORMS:
        row = outcomes.where(net="VGG-16", norm=norm)[0]
        steps = tuple(map(float, row["steps"]))
        curves += [
            Curve(norm, steps, tuple(values), faint=level != 0.5)
            for level, values in zip(SHOWN, row["quantiles"])
            if level in (0.05, 0.5, 0.95)
        ]
    return Curves(
        title="The eighth convolution of a VGG-16 on a fixed batch: median, and 5% and 95% (faint), one run of each.",
        x=Axis("step"),
        y=Axis("output"),
        curves=tuple(curves),
    )


CLAIM = Claim(
    id="4.7",
    kind="figure",
    en="The picture: with batch normalization the output distributions of a VGG-16's middle convolutions stay in place "
    "during the training.",
    zh="图示：有 BN 时，VGG-16 中间卷积层的输出分布在训练中保持稳定。",
    source="004, picture of VGG-16's middle convolutions",
    protocol="VGG-16's thirteen convolutions at an eighth of the width, pooling while there is something to pool, and "
    "six convolutions; SGD with rate 0.01, momentum 0.9 and batch 64, under normscope.watch: the shift (1-Wasserstein "
    "distance by the deviation) of the middle convolutions' outputs (the fifth to the tenth; the third and fourth), "
    "behind the norm where there is one, on a fixed batch between twelve looks; log₂ of the ratio without over with, "
    "paired by seed.",
    decision=Decision(0.5, 0.0, "halvings of the shift", "30% less shift is a picture that looks steadier"),
    sizes={
        "quick": {"seeds": 5, "epochs": 4, "width": 8},
        "full": {"seeds": 5, "epochs": 30, "width": 64},
    },
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS204"),
)
