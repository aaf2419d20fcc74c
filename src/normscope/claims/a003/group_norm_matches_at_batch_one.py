"""3.5: GroupNorm with weight standardization matches large-batch BatchNorm at batch size 1; so does BatchChannelNorm.

Every training makes an equal number of epochs, so batch size 1 makes 32 times the steps at a 32nd of the rate.
"""

from __future__ import annotations

from typing import Any

from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.curves import ACCURACY, averages
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.models import norm_of, vgg
from normscope.claims.outcomes import Case, Outcomes
from normscope.norms.combined import BatchChannelNorm
from normscope.report.parts import Profile
from normscope.terms.verdict import Effect

BATCHES = (1, 4, 32)
ARMS = ("GroupNorm + WS", "GroupNorm", "BatchChannelNorm + WS")
REFERENCE = {"arm": "BatchNorm", "batch": 32}


def cases(seeds: int, epochs: int, samples: int) -> list[Case]:
    """Each remedy at each batch size, and large-batch BatchNorm."""
    arms = [{"arm": arm, "batch": batch} for arm in ARMS for batch in BATCHES] + [REFERENCE]
    return [{**arm, "epochs": epochs, "samples": samples, "seed": seed} for arm in arms for seed in range(seeds)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """The accuracy that the training ends with."""
    split = bench.images.first(case["samples"])
    norm, _, standardized = case["arm"].partition(" + ")
    combined = norm == "BatchChannelNorm"

    def build() -> Any:
        name = "GroupNorm" if combined else norm
        model = vgg(split.x.shape[1], depth=3, width=8, norm=name, standardized=bool(standardized))
        for at, layer in enumerate(model):
            if combined and isinstance(layer, type(norm_of("GroupNorm", 8))):
                model[at] = BatchChannelNorm(layer.channels, 8)  # pyright: ignore[reportArgumentType]
        return model

    _, curve = bench.train(
        build,
        seed=case["seed"],
        rate=0.04 * case["batch"] / 32,
        epochs=case["epochs"],
        batch=case["batch"],
        split=split,
    )
    return {"final": curve.final}


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The accuracy of each remedy less that of BatchNorm at batch 32."""
    return {
        f"{arm}, batch {batch}": paired(
            [one - other for one, other in outcomes.pairs("final", {"arm": arm, "batch": batch}, REFERENCE)], "accuracy"
        )
        for arm in ARMS
        for batch in BATCHES
    }


def draw(outcomes: Outcomes) -> Profile:
    """Accuracy over the batch size."""
    title = "Accuracy at the end of the training over the batch size, mean of seeds."
    return averages(outcomes, "final", "arm", "batch", title=title, axis=ACCURACY)


CLAIM = Claim(
    id="3.5",
    kind="training",
    en="GroupNorm with weight standardization matches or beats large-batch BatchNorm even at batch size 1; so "
    "does batch-channel normalization.",
    zh="组归一化加权重标准化在批量为 1 时也不逊于大批量的 BN；批通道归一化亦然。",
    source="003, section on weight standardization, results",
    protocol="Convolutional networks of 3 layers, SGD with momentum 0.9, rate 0.04 × batch/32, equal epochs; final "
    "test accuracy less that of BatchNorm at batch 32, paired by seed.",
    decision=Decision(-0.02, -0.02, "accuracy", "within 2 points is a match"),
    sizes={"quick": {"seeds": 5, "epochs": 3, "samples": 480}, "full": {"seeds": 5, "epochs": 40, "samples": 1000000}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
)
