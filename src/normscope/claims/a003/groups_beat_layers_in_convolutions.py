"""3.3: group normalization does better than layer normalization in convolutional networks; the groups are a knob.

One group is layer normalization over channels and positions; as many groups as channels is instance normalization.
"""

from __future__ import annotations

from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import ACCURACY, averages
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import vgg
from normscope.claims.outcomes import Case, Outcomes
from normscope.norms.classes import GroupNorm
from normscope.report.parts import Profile
from normscope.terms.verdict import Effect

GROUPS = (1, 2, 4, 8, 16)


def cases(seeds: int, epochs: int) -> list[Case]:
    """Every number of groups."""
    return [
        {"net": "VGG", "groups": groups, "epochs": epochs, "seed": seed} for groups in GROUPS for seed in range(seeds)
    ]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The accuracy that the training ends with, and the mean over its epochs."""

    def build() -> Any:
        model = vgg(bench.images.x.shape[1], depth=4, width=16, norm="GroupNorm")
        for at, layer in enumerate(model):
            if type(layer).__name__ == "Norm":
                model[at] = GroupNorm(case["groups"], layer.channels)  # pyright: ignore[reportArgumentType]
        return model

    _, curve = bench.train(build, seed=case["seed"], rate=0.03, epochs=case["epochs"])
    return {"final": curve.final, "area": sum(curve.accuracy[1:]) / case["epochs"]}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """Each number of groups against one group; and the best number against the worst."""
    effects = {}
    for groups in GROUPS[1:]:
        pairs = outcomes.pairs("area", {"groups": groups}, {"groups": 1})
        effects[f"{groups} groups against LayerNorm"] = paired([one - other for one, other in pairs], "accuracy")
    means = {groups: sum(outcomes.where(groups=groups).column("area")) for groups in GROUPS}
    best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    pairs = outcomes.pairs("area", {"groups": best}, {"groups": worst})
    effects["a knob: best against worst number"] = paired([one - other for one, other in pairs], "accuracy")
    return effects


def draw(outcomes: Outcomes) -> Profile:
    """Accuracy over the number of groups."""
    title = "Accuracy over the training for each number of groups, mean of seeds and epochs."
    return averages(outcomes, "area", "net", "groups", title=title, axis=ACCURACY)


CLAIM = Claim(
    id="3.3",
    kind="training",
    en="Group normalization does better than layer normalization in convolutional networks, and the number of "
    "groups is a tuning knob.",
    zh="实践中组归一化优于层归一化，组数 num_groups 可作超参数调整。",
    source="003, section on group normalization",
    protocol="Convolutional networks of 4 layers (16 and 32 channels), SGD with rate 0.03, momentum 0.9 and batch 64; "
    "test accuracy as the mean over epochs, against one group, paired by seed. The best and the worst number "
    "of groups are chosen on the same runs, which favors the knob.",
    decision=Decision(0.005, -0.005, "accuracy", "half a point is the least that two dozen seeds can show"),
    sizes={"quick": {"seeds": 24, "epochs": 5}, "full": {"seeds": 30, "epochs": 40}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("GroupNorm", "LayerNorm", "NS114"),
)
