"""0.15, a dispute: with batch normalization removed, a re-tuned rate still trains deep networks.

Both arms get the same sweep of rates; each is judged at its best. The sentence holds at a depth where the plain network
comes within a few points of the normalized one.
"""

from __future__ import annotations

from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Column, Profile
from normscope.terms.verdict import Effect

RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
DEPTHS = (8, 32)
STARTS = {"He's start": None, "a start of half the size": 0.7}


def cases(seeds: int, epochs: int) -> list[Case]:
    """Every rate for both arms."""
    return [
        {"norm": norm, "depth": depth, "start": start, "rate": rate, "epochs": epochs, "seed": seed}
        for norm in ("none", "BatchNorm")
        for depth in DEPTHS
        for start in STARTS
        for rate in RATES
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The accuracy that the training ends with."""
    inputs = bench.images.x[0].numel()
    _, curve = bench.train(
        lambda: mlp(inputs, depth=case["depth"], width=32, norm=case["norm"], gain=STARTS[case["start"]]),
        seed=case["seed"],
        rate=case["rate"],
        epochs=case["epochs"],
    )
    return {"final": curve.final, "diverged": curve.diverged}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The accuracy without less that with batch normalization, each at its best rate."""
    effects = {}
    for depth in DEPTHS:
        for start in STARTS:
            rows = outcomes.where(depth=depth, start=start)
            plain, normed = (_best(rows.where(norm=norm)) for norm in ("none", "BatchNorm"))
            effects[f"{depth} layers, {start}"] = paired([one - other for one, other in zip(plain, normed)], "accuracy")
    return effects


def _best(rows: Outcomes) -> list[float]:
    """The accuracies of the seeds at the best rate."""
    return max((rows.where(rate=rate).column("final") for rate in RATES), key=sum)


def draw(outcomes: Outcomes) -> Profile:
    """Accuracy over the rate for the deeper network."""
    rows = outcomes.where(depth=DEPTHS[-1])

    def mean(norm: str, start: str, rate: float) -> float:
        ends = rows.where(norm=norm, start=start, rate=rate).column("final")
        return sum(ends) / len(ends)

    return Profile(
        title=f"Accuracy of {DEPTHS[-1]} layers at the end of the training for each rate, mean of seeds.",
        places=tuple(f"rate {rate:g}" for rate in RATES),
        roles=("",) * len(RATES),
        x=Axis("accuracy on the test split", share=True),
        columns=tuple(
            Column(f"{norm}, {start}", tuple(mean(norm, start, rate) for rate in RATES))
            for norm in ("none", "BatchNorm")
            for start in STARTS
        ),
    )


CLAIM = Claim(
    id="0.15",
    kind="training",
    en="With batch normalization removed, a re-tuned rate still trains deep networks.",
    zh="移除 BN 后，调整学习率仍能训练深层网络。",
    source="000, section 6, disputed effect",
    protocol="Dense ReLU networks of 8 and 32 layers from He's weights and from half of them, SGD with momentum 0.9 "
    "and batch 64 at five rates from 0.001 to 0.1; final test accuracy without less with batch normalization, "
    "each at its best rate, paired by seed.",
    decision=Decision(-0.1, -0.1, "accuracy won by removing the norm", "a network within 10 points is trained as well"),
    sizes={"quick": {"seeds": 15, "epochs": 4}, "full": {"seeds": 15, "epochs": 40}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS210"),
)
