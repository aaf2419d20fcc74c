"""3.7: a norm between linear map and nonlinearity avoids dead units.

ReLU networks from a bad start (biases of −1 and weights twice too small or large) and at a large rate; a unit is dead
when its output is one value for the whole test split: the measure `dead` of `normscope.watch`. Of a training that
broke off, all units count as dead.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import mlp
from normscope.claims.outcomes import Case, Outcomes
from normscope.claims.seen import pre_activations
from normscope.record.reader import Record
from normscope.report.parts import Axis, Column, Profile
from normscope.terms.verdict import Effect

NORMS = ("none", "BatchNorm", "LayerNorm", "GroupNorm")
TROUBLES = {"biases start at −1": (0.01, -1.0), "rate 0.3": (0.3, 0.0)}


def cases(seeds: int, epochs: int) -> list[Case]:
    """Two ways to lose units, four norms."""
    return [
        {"trouble": trouble, "norm": norm, "epochs": epochs, "seed": seed}
        for trouble in TROUBLES
        for norm in NORMS
        for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The share of units that are dead before and after the training."""
    images = bench.images
    rate, bias = TROUBLES[case["trouble"]]
    last = bench.last_step(case["epochs"])

    def build() -> nn.Sequential:
        model = mlp(images.x[0].numel(), depth=4, width=64, norm=case["norm"])
        for layer in list(model)[:-1]:
            if isinstance(layer, nn.Linear):
                nn.init.constant_(layer.bias, bias)
        return model

    curve, (before, after) = bench.follow(
        build,
        _dead,
        at=lambda step: step == last,
        probe=images.test_x,
        measures=("activation", "dead"),
        seed=case["seed"],
        rate=rate,
        epochs=case["epochs"],
    )
    return {"before": before, "after": 1.0 if curve.diverged else after, "final": curve.final}


def _dead(record: Record) -> tuple[float, float]:
    """The dead share at the first and at the last look, mean over layers of equal width."""
    layers = [record.series(site.path, "dead").values for site in pre_activations(record)]
    first, last = (sum(float(layer[at]) for layer in layers) / len(layers) for at in (0, -1))
    return first, last


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The share of units that the norm keeps alive."""
    return {
        f"{norm}, {trouble}": paired(
            [
                other - one
                for one, other in outcomes.where(trouble=trouble).pairs("after", {"norm": norm}, {"norm": "none"})
            ],
            "share",
        )
        for trouble in TROUBLES
        for norm in NORMS[1:]
    }


def draw(outcomes: Outcomes) -> Profile:
    """The share of dead units after the training."""

    def mean(norm: str, trouble: str) -> float:
        ends = outcomes.where(norm=norm, trouble=trouble).column("after")
        return sum(ends) / len(ends)

    return Profile(
        title="The share of dead units after the training, mean of seeds.",
        places=NORMS,
        roles=NORMS,
        x=Axis("dead units", share=True),
        columns=tuple(Column(trouble, tuple(mean(norm, trouble) for norm in NORMS)) for trouble in TROUBLES),
    )


CLAIM = Claim(
    id="3.7",
    kind="training",
    en="A normalization layer between linear map and nonlinearity avoids dead units.",
    zh="归一化层放在线性层与非线性之间，可避免永不激活的死神经元。",
    source="003, last paragraph before the references",
    protocol="Dense ReLU networks of 4 layers, SGD with momentum 0.9 and batch 64, from biases of −1 at rate 0.01, or "
    "from zero biases at rate 0.3; share of hidden units that give zero for all test images after the "
    "training, without less with the norm, paired by seed.",
    decision=Decision(0.02, 0.0, "share of units kept alive", "one unit in fifty is the least that matters"),
    sizes={"quick": {"seeds": 5, "epochs": 4}, "full": {"seeds": 10, "epochs": 30}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "LayerNorm", "GroupNorm", "NS203"),
)
