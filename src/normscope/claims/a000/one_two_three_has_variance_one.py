"""0.7: the batch [1, 2, 3] has mean 2 and variance 1; [0, 2, 4] is normalized to mean 0 and variance 1.

The variance of the formula, and of every implementation while training, divides by the batch size: it is 2/3. It is 1
with Bessel's correction, with which only the running variance is kept. And with ε the normalized batch has variance
v / (v + ε): 1 but for 4 parts in a million.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from normscope import functional
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.exact import TOLERANCE, draw, each, residual, weigh
from normscope.claims.outcomes import Case
from normscope.terms.catalog import CATALOG

FIRST, SECOND = (torch.tensor(row, dtype=torch.float64) for row in ([1, 2, 3], [0, 2, 4]))


def normalized(x: Tensor, eps: float) -> Tensor:
    """A batch of single numbers through BatchNorm."""
    return functional.normalize(x[:, None], CATALOG["BatchNorm"].but(eps=eps), training=True)[:, 0]


CONDITIONS: dict[str, Callable[[], tuple[Tensor, float]]] = {
    "[1, 2, 3] has mean 2": lambda: (FIRST.mean(), 2.0),
    "[1, 2, 3] has variance 1, divided by m": lambda: (FIRST.var(correction=0), 1.0),
    "[1, 2, 3] has variance 1, divided by m − 1": lambda: (FIRST.var(correction=1), 1.0),
    "[0, 2, 4] normalized has mean 0": lambda: (normalized(SECOND, 1e-5).mean(), 0.0),
    "[0, 2, 4] normalized with ε = 0 has variance 1, divided by m": lambda: (
        normalized(SECOND, 0.0).var(correction=0),
        1.0,
    ),
    "[0, 2, 4] normalized with ε = 0 has variance 1, divided by m − 1": lambda: (
        normalized(SECOND, 0.0).var(correction=1),
        1.0,
    ),
    "[0, 2, 4] normalized with ε = 10⁻⁵ has variance 1, divided by m": lambda: (
        normalized(SECOND, 1e-5).var(correction=0),
        1.0,
    ),
}


def cases() -> list[Case]:
    """Each half of the sentence under each reading of "variance"."""
    return each(CONDITIONS)


def run(case: Case, bench: Bench) -> dict[str, float]:
    """How far the number is from the article's."""
    got, wanted = CONDITIONS[case["condition"]]()
    return {"got": got.item(), "residual": residual(got, wanted)}


CLAIM = Claim(
    id="0.7",
    kind="exact",
    en="The batch [1, 2, 3] has mean 2 and variance 1; [0, 2, 4] is normalized to mean 0 and variance 1.",
    zh="批量 [1, 2, 3] 的均值为 2、方差为 1；[0, 2, 4] 被标准化为均值 0、方差 1。",
    source="000, section 4 (1)",
    protocol="The article's numbers in float64, under both readings of variance (divided by m, as the formula of batch "
    "normalization says, and by m − 1), with ε = 0 and with the article's ε.",
    decision=Decision.exact(TOLERANCE),
    sizes={"quick": {}, "full": {}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm",),
)
