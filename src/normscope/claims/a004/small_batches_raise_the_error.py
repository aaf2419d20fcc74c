"""4.1: batch normalization loses about ten points from batch size 32 to 2; a batch of one is impossible.

Each norm is compared with itself at batch 32, so that what small batches do to SGD itself is seen in the other norms.
"""

from __future__ import annotations

import torch

from normscope import nn
from normscope.claims.batch_sizes import BATCHES, PROTOCOL, SIZES, cases, run
from normscope.claims.claim import Claim
from normscope.claims.curves import ACCURACY, averages
from normscope.claims.decision import Decision
from normscope.claims.interval import exact, paired
from normscope.claims.outcomes import Outcomes
from normscope.report.parts import Profile
from normscope.terms.errors import ShapeError
from normscope.terms.verdict import Effect


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """What batch normalization loses from 32 to each smaller batch, and more than group normalization does."""
    effects = {}
    for batch in BATCHES[1:-1]:
        lost, other = (
            [large - small for large, small in outcomes.where(arm=arm).pairs("final", {"batch": 32}, {"batch": batch})]
            for arm in ("BatchNorm", "GroupNorm")
        )
        effects[f"BatchNorm, batch {batch}"] = paired(lost, "accuracy lost")
        beyond = [one - another for one, another in zip(lost, other)]
        effects[f"BatchNorm beyond GroupNorm, batch {batch}"] = paired(beyond, "accuracy lost")
    effects["a dense batch of one is refused"] = exact(1.0 if _refuses_one() else 0.0)
    return effects


def _refuses_one() -> bool:
    try:
        nn.BatchNorm1d(4)(torch.ones(1, 4))
    except ShapeError:
        return True
    return False


def draw(outcomes: Outcomes) -> Profile:
    """Accuracy over the batch size."""
    title = "Accuracy at the end of the training over the batch size, mean of seeds."
    return averages(outcomes, "final", "arm", "batch", title=title, axis=ACCURACY)


CLAIM = Claim(
    id="4.1",
    kind="training",
    en="Batch normalization's error rises as the batch shrinks (32 to 2), by about ten points; a batch of one is "
    "impossible for a dense layer.",
    zh="批量由 32 减到 2 时 BN 的误差上升约十个百分点；批量为 1 时全连接层的 BN 无法工作。",
    source="004, section on small batch sizes",
    protocol=f"{PROTOCOL}; final test accuracy at batch 32 less that at the smaller batch, paired by seed, and the "
    "same less what GroupNorm loses.",
    decision=Decision(0.05, 0.02, "accuracy lost", "5 points are of the order of ten, 2 are not"),
    sizes=SIZES,
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "BatchRenorm", "GroupNorm", "NS102", "NS304", "NS309"),
)
