"""1.5: inference takes the expectation of the recorded mini-batch statistics, with the unbiased variance.

Over all subsets of a data set, the mean of the batch means is the data's mean, and the mean of the unbiased batch
variances is the data's (unbiased) variance, exactly. Over the batches of one pass this is true of the mean only; the
variance lacks what differs from batch to batch, little in shuffled data, nearly all in sorted ones. Merging the
moments of the batches lacks nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from normscope import functional
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.exact import TOLERANCE, draw, each, generator, residual, weigh
from normscope.claims.outcomes import Case
from normscope.stats.moments import Moments
from normscope.terms.catalog import CATALOG

SIZE, BATCH = 12, 3


def _subsets(x: Tensor) -> Tensor:
    return x[torch.tensor(list(combinations(range(SIZE), BATCH)))]


def _merged(x: Tensor) -> Tensor:
    total = Moments.empty()
    for batch in x.sort().values.split(BATCH):
        total = total.merge(Moments.of(batch))
    return torch.tensor(total.unbiased_var)


def _single(x: Tensor) -> tuple[Tensor, Tensor]:
    """A sample by itself, and the same sample in a batch."""
    spec = CATALOG["BatchNorm"]
    state = {"running_mean": x.mean()[None], "running_var": x.var()[None], "num_batches_tracked": torch.tensor(1)}
    alone, among = (functional.normalize(part[:, None], spec, state=state, training=False) for part in (x[:1], x))
    return alone, among[:1]


CONDITIONS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "mean, over all batches": lambda x: (_subsets(x).mean(1).mean(), x.mean()),
    "unbiased variance, over all batches": lambda x: (_subsets(x).var(1).mean(), x.var()),
    "biased variance, over all batches": lambda x: (_subsets(x).var(1, correction=0).mean(), x.var()),
    "mean, one pass of sorted batches": lambda x: (x.sort().values.view(-1, BATCH).mean(1).mean(), x.mean()),
    "unbiased variance, one pass of shuffled batches": lambda x: (x.view(-1, BATCH).var(1).mean(), x.var()),
    "unbiased variance, one pass of sorted batches": lambda x: (x.sort().values.view(-1, BATCH).var(1).mean(), x.var()),
    "merged moments, one pass of sorted batches": lambda x: (_merged(x), x.var()),
    "a single sample is served as in a batch": _single,
}


def cases(draws: int) -> list[Case]:
    """Each kind of batches on random data."""
    return each(CONDITIONS, draws)


def run(case: Case, bench: Bench) -> dict[str, float]:
    """How far the expectation over batches is from the statistic of all data."""
    x = 3 + 2 * torch.randn(SIZE, dtype=torch.float64, generator=generator(case))
    return {"residual": residual(*CONDITIONS[case["condition"]](x))}


CLAIM = Claim(
    id="1.5",
    kind="exact",
    en="The expectation of the recorded mini-batch means and unbiased variances is the population's statistic, and it "
    "serves single examples at inference.",
    zh="把每个 mini-batch 的均值和方差记住并求期望，即得全局统计量，推理时可用于单个实例。",
    source="001, section 4",
    protocol="12 random numbers in float64, batches of 3: all 220 subsets, or the four batches of one pass in random "
    "or in sorted order; the mean over batches against the statistic of all 12.",
    decision=Decision.exact(TOLERANCE),
    sizes={"quick": {"draws": 20}, "full": {"draws": 200}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS301", "NS303"),
)
