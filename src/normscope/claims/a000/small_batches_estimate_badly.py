"""0.16: the cost of statistics, and what a batch of two knows of the variance.

The article counts 256 extra statistics for a layer and a batch of 128. The number of statistics is two a channel and
does not depend on the batch. The variance estimated from m normal numbers has the relative deviation √(2/(m − 1)):
141% at m = 2. And the output for a fixed sample moves with its neighbours, which is a shift that no layer below made.
"""

from __future__ import annotations

from typing import Any

import torch

from normscope import nn
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.interval import bootstrap, exact
from normscope.claims.outcomes import Case, Outcomes
from normscope.report.parts import Axis, Column, Profile
from normscope.terms.verdict import Effect

BATCHES = (2, 4, 8, 16, 32, 128)
CHANNELS = 64


def cases(seeds: int) -> list[Case]:
    """Random batches of each size."""
    return [{"batch": batch, "seed": seed} for batch in BATCHES for seed in range(seeds)]


def run(case: Case, bench: Bench) -> dict[str, Any]:
    """Numbers measured per layer, the relative error of the variance, and how far a fixed sample's output moves."""
    turns = torch.Generator().manual_seed(case["seed"])
    draws = torch.randn(case["batch"], CHANNELS * 200, dtype=torch.float64, generator=turns)
    estimated = draws.var(0, correction=1)
    draws[0] = 1.0  # one standard deviation above the mean, in company that changes
    outputs = nn.BatchNorm1d(CHANNELS * 200, affine=False, dtype=torch.float64)(draws)[0]
    layer = nn.BatchNorm1d(CHANNELS, affine=False)
    layer(torch.ones(case["batch"], CHANNELS))
    return {
        "statistics": sum(kept.numel() for name, kept in layer.named_buffers() if name.startswith("running")),
        "error": (estimated - 1).square().mean().sqrt().item(),
        "moves": outputs.std().item(),
    }


def weigh(outcomes: Outcomes) -> dict[str, Effect]:
    """The statistics beyond two a channel; the error of the variance; the movement of a fixed sample's output."""
    counts = {row["batch"]: row["statistics"] for row in outcomes}
    effects = {"statistics grow with the batch, 2 to 128": exact(counts[128] / counts[2] - 1, "share")}
    for batch in BATCHES:
        rows = outcomes.where(batch=batch)
        effects[f"batch {batch}: error of the variance"] = bootstrap(rows.column("error"), unit="share")
        effects[f"batch {batch}: shift of a fixed sample"] = bootstrap(rows.column("moves"), unit="deviations")
    return effects


def draw(outcomes: Outcomes) -> Profile:
    """Error and movement over the batch size, with the formula's error."""
    places = tuple(f"batch {batch}" for batch in BATCHES)
    rows = [outcomes.where(batch=batch)[0] for batch in BATCHES]
    return Profile(
        title="What a batch knows of the variance, and how far a fixed sample's output moves with its neighbours.",
        places=places,
        roles=("",) * len(places),
        x=Axis("relative error, standard deviations", log=True),
        columns=(
            Column("error of the variance", tuple(row["error"] for row in rows)),
            Column("√(2/(m − 1))", tuple((2 / (batch - 1)) ** 0.5 for batch in BATCHES)),
            Column("shift of a fixed sample", tuple(row["moves"] for row in rows)),
        ),
    )


CLAIM = Claim(
    id="0.16",
    kind="measurement",
    en="BatchNorm adds statistics to compute, more for a larger batch; a small batch (2) estimates them inaccurately "
    "and can itself shift the distribution.",
    zh="BN 需额外计算统计量；批量很小（如 2）时估计不准确，反而可能加剧分布偏移。",
    source="000, section 6, cost and small batches",
    protocol="200 normal batches of each size in 64 channels, float64: relative root mean square error of the unbiased "
    "variance, and the standard deviation of the output for one fixed sample among changing neighbours.",
    decision=Decision(0.3, 0.1, "share, or standard deviations", "10% is accurate, 30% is not"),
    sizes={"quick": {"seeds": 5}, "full": {"seeds": 50}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS102", "NS304"),
)
