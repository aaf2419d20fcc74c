"""1.7: tuning is easier with batch normalization: less need for a good initialization, larger rates.

How much of a grid of rates and starts trains well: the share of its points whose accuracy comes within five points of
the best point of the arm that is better at its best.
"""

from __future__ import annotations

from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import ACCURACY, averages
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Profile
from normscope.terms.verdict import Effect

NORMS = ("none", "BatchNorm")
RATES = (0.003, 0.03, 0.3)
GAINS = (0.3, 1.4, 4.0)
NEAR = 0.05


def cases(seeds: int, epochs: int) -> list[Case]:
    """The grid for both arms."""
    return [
        {"norm": norm, "rate": rate, "gain": gain, "epochs": epochs, "seed": seed}
        for norm in NORMS
        for rate in RATES
        for gain in GAINS
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The accuracy that the training ends with."""
    inputs = bench.images.x[0].numel()
    _, curve = bench.train(
        lambda: mlp(inputs, depth=6, width=64, norm=case["norm"], gain=case["gain"]),
        seed=case["seed"],
        rate=case["rate"],
        epochs=case["epochs"],
    )
    return {"final": curve.final, "diverged": curve.diverged}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The share of good points with less without the norm: of the whole grid, of the starts, of the rates."""
    parts = {"the grid": {}, "starts at rate 0.03": {"rate": 0.03}, "rates from He's start": {"gain": 1.4}}
    return {
        f"more of {name} trains well": paired(
            [_good(outcomes, "BatchNorm", part, seed) - _good(outcomes, "none", part, seed) for seed in seeds], "share"
        )
        for name, part in parts.items()
        for seeds in [outcomes.levels("seed")]
    }


def _good(outcomes: Outcomes, norm: str, part: Case, seed: int) -> float:
    """The share of the points of a part of the grid that come near the best of all."""
    best = max(outcomes.where(seed=seed).column("final"))
    ends = outcomes.where(norm=norm, seed=seed, **part).column("final")
    return sum(end > best - NEAR for end in ends) / len(ends)


def draw(outcomes: Outcomes) -> Profile:
    """Accuracy over the rate, mean over starts and seeds."""
    title = "Accuracy at each rate, mean of starts and seeds."
    return averages(outcomes, "final", "norm", "rate", title=title, axis=ACCURACY)


CLAIM = Claim(
    id="1.7",
    kind="training",
    en="With batch normalization tuning is easier: there is less need for a good initialization, and larger "
    "rates can be used.",
    zh="使用 BN 后调参更简单：对初始化要求没那么高，还可以使用大的学习率。",
    source="001, section 5, third benefit",
    protocol="Dense ReLU networks of 6 layers at rates 0.003, 0.03 and 0.3 from weights 0.2, 1 and 3 times He's, SGD "
    "with momentum 0.9, batch 64; the share of points whose final test accuracy comes within 5 points of the "
    "seed's best, with less without the norm, paired by seed.",
    decision=Decision(0.0, 0.0, "share of the grid", "any more of the grid is easier"),
    sizes={"quick": {"seeds": 5, "epochs": 6}, "full": {"seeds": 10, "epochs": 40}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS206", "NS210"),
)
