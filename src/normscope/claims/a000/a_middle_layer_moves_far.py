"""0.6: layers must keep re-adapting: layer 10 of 20 goes from mean 0, variance 1 to mean 3, variance 10 in few epochs.

Twenty layers without normalization, started so that all layers see mean 0 and equal variance. How far the mean of layer
10 has moved, and how often its variance has grown, in five epochs under `normscope.watch`, in the article's figures.
"""

from __future__ import annotations

from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import bootstrap
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.claims.seen import on_probe, pre_activations
from normscope.record.reader import Record
from normscope.report.parts import Axis, Curve, Curves
from normscope.terms.verdict import Effect

DEPTH, LAYER, EPOCHS, EVERY = 20, 10, 5, 10
ARMS = (("relu", 0.001), ("relu", 0.01), ("tanh", 0.01), ("tanh", 0.1))


def cases(seeds: int) -> list[Case]:
    """Two nonlinearities, two rates each."""
    return [{"activation": name, "rate": rate, "seed": seed} for name, rate in ARMS for seed in range(seeds)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """Mean and variance of the pre-activations of layer 10, by the start's, every ten steps."""
    images = bench.images

    def read(record: Record) -> dict[str, Any]:
        looks = [look.channels for look in on_probe(record, pre_activations(record)[LAYER - 1]) if look.channels]
        means = [float(abs(look.mean).mean()) for look in looks]
        variances = [float((look.m2 / (look.count - 1)).mean()) for look in looks]
        return {
            "mean": [abs(value - means[0]) / variances[0] ** 0.5 for value in means],
            "variance": [value / variances[0] for value in variances],
        }

    curve, told = bench.follow(
        lambda: mlp(images.x[0].numel(), depth=DEPTH, width=64, activation=case["activation"]),
        read,
        at=lambda step: step % EVERY == 0,
        probe=images.test_x[:128],
        seed=case["seed"],
        rate=case["rate"],
        epochs=EPOCHS,
    )
    return {**told, "accuracy": curve.final}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The largest move of the mean over the article's 3, and growth of the variance over its 10."""
    effects = {}
    for name, rate in ARMS:
        rows = outcomes.where(activation=name, rate=rate)
        effects[f"{name}, rate {rate:g}: mean 0 → 3"] = bootstrap([max(row) / 3 for row in rows.column("mean")])
        effects[f"{name}, rate {rate:g}: variance 1 → 10"] = bootstrap(
            [max(row) / 10 for row in rows.column("variance")]
        )
    return effects


def draw(outcomes: Outcomes) -> Curves:
    """The variance of layer 10 over steps, one run of each kind."""
    first = [outcomes.where(activation=name, rate=rate)[0] for name, rate in ARMS]
    return Curves(
        title="The variance of layer 10's pre-activations over that at the start, one run of each kind.",
        x=Axis("step"),
        y=Axis("times the start", log=True),
        curves=tuple(
            Curve(
                f"{row['activation']}, rate {row['rate']:g}",
                tuple(float(EVERY * at) for at in range(len(row["variance"]))),
                tuple(row["variance"]),
            )
            for row in first
        ),
    )


CLAIM = Claim(
    id="0.6",
    kind="training",
    en="In a 20-layer network layer 10's input goes from mean 0 and variance 1 to mean 3 and variance 10 within a few "
    "epochs.",
    zh="20 层网络在前几轮迭代中，第 10 层输入可能从均值 0、方差 1 变为均值 3、方差 10。",
    source="000, section 3, the example",
    protocol="Dense networks of 20 layers without normalization, five epochs of SGD with momentum 0.9 and batch 64; on "
    "a fixed batch, the mean |mean| of layer 10's units in standard deviations of the start, and the variance over the "
    "start's, the largest of the run; as shares of the article's figures.",
    decision=Decision(0.5, 0.2, "share of the article's figure", "half of it is of that order, a fifth is not"),
    sizes={"quick": {"seeds": 5}, "full": {"seeds": 20}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("NS204", "NS214"),
)
