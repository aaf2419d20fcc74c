"""3.5: GroupNorm with weight standardization matches large-batch BatchNorm at batch size 1; so does BatchChannelNorm.

Read off the sweep over batch sizes that 4.1 also reads.
"""

from __future__ import annotations

from normscope.claims.batch_sizes import ARMS, BATCHES, LARGE, PROTOCOL, SIZES, cases, run
from normscope.claims.claim import Claim
from normscope.claims.curves import ACCURACY, averages
from normscope.claims.decision import Decision
from normscope.claims.interval import paired
from normscope.claims.outcomes import Outcomes
from normscope.report.parts import Profile
from normscope.terms.verdict import Effect


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The accuracy of each remedy less that of BatchNorm at batch 32."""
    return {
        f"{arm}, batch {batch}": paired(
            [one - other for one, other in outcomes.pairs("final", {"arm": arm, "batch": batch}, LARGE)], "accuracy"
        )
        for arm in ARMS[2:]
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
    protocol=f"{PROTOCOL}; final test accuracy less that of BatchNorm at batch 32, paired by seed.",
    decision=Decision(-0.02, -0.02, "accuracy", "within 2 points is a match"),
    sizes=SIZES,
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("GroupNorm", "weight_standardization", "BatchChannelNorm", "NS102"),
)
