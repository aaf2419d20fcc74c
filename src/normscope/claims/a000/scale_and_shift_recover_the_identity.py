"""0.8: γ and β keep the layer's expressive power: with γ = σ and β = μ the layer is the identity.

One γ and β serve all inputs. Where μ and σ are those of one batch, or kept ones, the identity is among the functions
of the layer. Where each sample has its own μ and σ, no γ and β give them back for all samples: what the norm took out
is gone. The test finds the best γ and β by least squares, channel by channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normscope import functional
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.exact import TOLERANCE, draw, each, generator, residual, weigh
from normscope.claims.outcomes import Case
from normscope.terms.catalog import CATALOG

CONDITIONS = {
    "BatchNorm, one batch": "BatchNorm",
    "BatchNorm, two unlike batches while training": "BatchNorm",
    "BatchNorm, two unlike batches at inference": "BatchNorm",
    "LayerNorm": "LayerNorm2d",
    "GroupNorm": "GroupNorm",
    "InstanceNorm": "InstanceNorm",
}
SHAPE = (8, 6, 5, 5)


def cases(draws: int) -> list[Case]:
    """Each norm on random inputs."""
    return each(CONDITIONS, draws)


def run(case: Case, bench: Bench) -> dict[str, float]:
    """What the best γ and β leave of the difference to the identity."""
    name = CONDITIONS[case["condition"]]
    spec = CATALOG[name].but(affine=False, bias=False, eps=0.0)
    spec = spec.but(groups=3) if name == "GroupNorm" else spec
    turns = generator(case)
    x = 2 + 3 * torch.randn(SHAPE, dtype=torch.float64, generator=turns)
    unlike = torch.cat([x, 5 * x + 1]) if "two" in case["condition"] else x
    if "inference" in case["condition"]:
        mean, variance = unlike.mean((0, 2, 3)), unlike.var((0, 2, 3), correction=0)
        state = {"running_mean": mean, "running_var": variance, "num_batches_tracked": torch.tensor(1)}
        normalized = functional.normalize(unlike, spec, state=state, training=False)
    else:
        parts = unlike.split(len(x))
        normalized = torch.cat([functional.normalize(part, spec, training=True) for part in parts])
    return {"residual": residual(_best(normalized, unlike), unlike)}


def _best(y: Tensor, wanted: Tensor) -> Tensor:
    """γ·y + β with the γ and β of each channel that come nearest to `wanted`."""
    y, wanted = (part.transpose(0, 1).flatten(1) for part in (y, wanted))
    centred = y - y.mean(1, keepdim=True)
    gamma = (centred * wanted).sum(1, keepdim=True) / centred.square().sum(1, keepdim=True)
    fitted = gamma * centred + wanted.mean(1, keepdim=True)
    return fitted.unflatten(1, (-1, *SHAPE[2:])).transpose(0, 1)


CLAIM = Claim(
    id="0.8",
    kind="exact",
    en="The learned γ and β keep the layer's expressive power: they can undo the normalization.",
    zh="可学习的 γ 和 β 保持模型表达能力：它们能还原归一化之前的值。",
    source="000, section 4 (1), scale and shift; 001, section 2",
    protocol="Random inputs (8, 6, 5, 5) in float64, normalized with ε = 0; the best γ and β of each channel by least "
    "squares; the largest difference between γ·x̂ + β and x, relative to the largest x.",
    decision=Decision.exact(TOLERANCE),
    sizes={"quick": {"draws": 10}, "full": {"draws": 100}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "NS310"),
)
