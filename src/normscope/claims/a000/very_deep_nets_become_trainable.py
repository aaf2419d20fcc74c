"""0.12: batch normalization makes very deep networks (100 layers and more) trainable; ResNet-152 depends on it.

Dense networks over depth, plain and with residual connections, with and without batch normalization, each at the
better of two rates. A network trains where it ends far above guessing.
"""

from __future__ import annotations

from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp, residual_mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Curve, Curves
from normscope.terms.verdict import Effect

DEPTHS = (10, 30, 100)
RATES = (0.001, 0.01)
NETS = {"plain": mlp, "residual": residual_mlp}


def cases(seeds: int, epochs: int, width: int) -> list[Case]:
    """Every depth, connection, norm and rate."""
    return [
        {"net": net, "norm": norm, "depth": depth, "rate": rate, "epochs": epochs, "width": width, "seed": seed}
        for net in NETS
        for norm in ("none", "BatchNorm")
        for depth in DEPTHS
        for rate in RATES
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The accuracy that the training ends with."""
    inputs = bench.images.x[0].numel()
    _, curve = bench.train(
        lambda: NETS[case["net"]](inputs, depth=case["depth"], width=case["width"], norm=case["norm"]),
        seed=case["seed"],
        rate=case["rate"],
        epochs=case["epochs"],
    )
    return {"final": curve.final, "diverged": curve.diverged}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The accuracy with batch normalization less that without, each at its better rate."""
    effects = {}
    for net in NETS:
        for depth in DEPTHS:
            with_, without = (_best(outcomes.where(net=net, depth=depth, norm=norm)) for norm in ("BatchNorm", "none"))
            effects[f"{net}, {depth} layers"] = paired([one - other for one, other in zip(with_, without)], "accuracy")
    return effects


def _best(rows: Outcomes) -> list[float]:
    """The accuracies of the seeds at the better rate."""
    return max((rows.where(rate=rate).column("final") for rate in RATES), key=sum)


def draw(outcomes: Outcomes) -> Curves:
    """Accuracy over depth."""

    def line(net: str, norm: str) -> tuple[float, ...]:
        ends = [_best(outcomes.where(net=net, norm=norm, depth=depth)) for depth in DEPTHS]
        return tuple(sum(end) / len(end) for end in ends)

    return Curves(
        title="Accuracy at the end of the training over depth, each at its better rate, mean of seeds.",
        x=Axis("layers"),
        y=Axis("accuracy on the test split", share=True),
        curves=tuple(
            Curve(f"{net}, {norm}", tuple(map(float, DEPTHS)), line(net, norm))
            for net in NETS
            for norm in ("none", "BatchNorm")
        ),
    )


CLAIM = Claim(
    id="0.12",
    kind="training",
    en="Batch normalization makes very deep networks (100 layers and more) trainable.",
    zh="缓解内部协变量偏移后，超深网络（100 层以上）变得可训练。",
    source="000, section 5, larger networks",
    protocol="Dense networks of 10, 30 and 100 layers, plain or in residual blocks of two, He's initialization, SGD "
    "with momentum 0.9 and batch 64, each arm at the better of the rates 0.001 and 0.01; final test accuracy with less "
    "without batch normalization, paired by seed.",
    decision=Decision(0.2, 0.05, "accuracy gained", "20 points separate a network that trains from one that does not"),
    sizes={"quick": {"seeds": 5, "epochs": 4, "width": 32}, "full": {"seeds": 10, "epochs": 30, "width": 128}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS201"),
)
