"""2.12: cosine normalization bounds pre-activations to [−1, 1]; it is weight normalization plus the norm of the input.

The inner product w·x has no bound. Divided by ‖w‖ (weight normalization with g = 1) it still grows with x; divided by
‖x‖ as well it is the cosine of the angle.
"""

from __future__ import annotations

import torch
from torch import nn as torch_nn

from normscope import nn
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.exact import TOLERANCE, draw, each, generator, residual, weigh
from normscope.claims.outcomes import Case

CONDITIONS = (
    "cosine is within [−1, 1]",
    "cosine = weight normalization / ‖x‖",
    "cosine of a vector with itself is 1",
)


def cases(draws: int) -> list[Case]:
    """Each part of the sentence on random layers and inputs of widely unlike size."""
    return each(CONDITIONS, draws)


def run(case: Case, bench: Bench) -> dict[str, float]:
    """How far beyond the bound the output is, or how far both sides of the equation are apart."""
    turns = generator(case)
    size = 10.0 ** torch.linspace(-3, 3, 64, dtype=torch.float64)
    x = size[:, None] * torch.randn(64, 16, dtype=torch.float64, generator=turns)
    cosine = nn.CosineLinear(16, 8, dtype=torch.float64)
    with torch.no_grad():
        cosine.weight.copy_(torch.randn(8, 16, dtype=torch.float64, generator=turns))
    plain = torch_nn.Linear(16, 8, bias=False, dtype=torch.float64)
    plain.weight = torch_nn.Parameter(cosine.weight / cosine.weight.norm(dim=1, keepdim=True))
    weighted = nn.weight_norm(plain)
    if "itself" in case["condition"]:
        return {"residual": residual(cosine(cosine.weight).diagonal(), torch.ones(8))}
    if "=" in case["condition"]:
        return {"residual": residual(cosine(x), weighted(x) / x.norm(dim=1, keepdim=True))}
    return {"residual": float((cosine(x).detach().abs().max() - 1).clamp(min=0))}


CLAIM = Claim(
    id="2.12",
    kind="exact",
    en="Cosine normalization bounds pre-activations to [−1, 1]; it is weight normalization plus the norm of the input.",
    zh="余弦归一化把预激活值限制在 [−1, 1]；它在权重归一化之上再除以输入向量的模。",
    source="002, section CN",
    protocol="Random layers of 16 inputs and 8 outputs on inputs whose size runs from 10⁻³ to 10³, in float64: how far "
    "outputs lie beyond 1, and cosine against weight normalization with g = 1 divided by ‖x‖.",
    decision=Decision.exact(TOLERANCE),
    sizes={"quick": {"draws": 10}, "full": {"draws": 100}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("cosine", "weight_norm"),
)
