"""0.13: with batch normalization the rate can go from 0.01 to 0.1 and stay stable; starts matter less.

A grid of rates and sizes of the first weights, with and without batch normalization. Stable is what ends no worse at
0.1 than at 0.01; sensitive is how much the accuracy differs over the starts.
"""

from __future__ import annotations

from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import told
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Column, Profile
from normscope.terms.verdict import Effect

RATES = (0.01, 0.1)
GAINS = (0.3, 1.4, 4.0)  # of the weights' deviation; He's is 1.4
NORMS = ("none", "BatchNorm")


def cases(seeds: int, epochs: int) -> list[Case]:
    """The grid."""
    return [
        {"norm": norm, "rate": rate, "gain": gain, "epochs": epochs, "seed": seed}
        for norm in NORMS
        for rate in RATES
        for gain in GAINS
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The curve of one training."""
    inputs = bench.images.x[0].numel()
    _, curve = bench.train(
        lambda: mlp(inputs, depth=8, width=64, norm=case["norm"], gain=case["gain"]),
        seed=case["seed"],
        rate=case["rate"],
        epochs=case["epochs"],
    )
    return told(curve)


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """What the larger rate costs, against without the norm; and how much less the starts matter."""
    lost = {
        norm: [one - other for one, other in outcomes.where(norm=norm).pairs("final", {"rate": 0.1}, {"rate": 0.01})]
        for norm in NORMS
    }
    effects = {"0.1 as good as 0.01, with BatchNorm": paired([0.07 + each for each in lost["BatchNorm"]], "accuracy")}
    effects["0.1 costs more without BatchNorm"] = paired(
        [one - other for one, other in zip(lost["BatchNorm"], lost["none"])], "accuracy"
    )
    for rate in RATES:
        spread = {norm: _spread(outcomes.where(norm=norm, rate=rate)) for norm in NORMS}
        effects[f"the start matters less, rate {rate:g}"] = paired(
            [plain - normed for plain, normed in zip(spread["none"], spread["BatchNorm"])], "accuracy"
        )
    return effects


def _spread(rows: Outcomes) -> list[float]:
    """For each seed, the best less the worst accuracy over the starts."""
    return [
        max(rows.where(seed=seed).column("final")) - min(rows.where(seed=seed).column("final"))
        for seed in rows.levels("seed")
    ]


def draw(outcomes: Outcomes) -> Profile:
    """The accuracy of each point of the grid."""
    points = [(rate, gain) for rate in RATES for gain in GAINS]
    return Profile(
        title="Accuracy at the end of the training for each rate and size of the first weights, mean of seeds.",
        places=tuple(f"rate {rate:g}, gain {gain:g}" for rate, gain in points),
        roles=tuple(f"{rate}" for rate, _ in points),
        x=Axis("accuracy on the test split", share=True),
        columns=tuple(
            Column(norm, tuple(_mean(outcomes.where(norm=norm, rate=rate, gain=gain)) for rate, gain in points))
            for norm in NORMS
        ),
    )


def _mean(rows: Outcomes) -> float:
    return sum(rows.column("final")) / len(rows)


CLAIM = Claim(
    id="0.13",
    kind="training",
    en="With batch normalization the rate can go from 0.01 to 0.1 and stay stable, and the start matters less.",
    zh="使用 BN 后学习率可从 0.01 提高到 0.1 仍稳定训练，对初始值的敏感性也降低。",
    source="000, section 5, stability",
    protocol="Dense networks of 8 ReLU layers, weights 0.2, 1 or 3 times He's, rates 0.01 and 0.1, SGD with momentum "
    "0.9 and batch 64; final test accuracy, paired by seed. As good means no more than 2 points lost (the effect is 7 "
    "points plus what is won, against 5); sensitive to the start is the best less the worst of the three.",
    decision=Decision(0.05, 0.0, "accuracy", "5 points are a difference that a user sees"),
    sizes={"quick": {"seeds": 10, "epochs": 6}, "full": {"seeds": 10, "epochs": 40}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS210", "NS206"),
)
