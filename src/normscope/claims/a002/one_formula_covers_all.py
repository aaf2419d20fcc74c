"""2.9: all normalizations are h = f(g·(x − μ)/σ + b), and its output has mean b and variance g².

Every row of the catalog that statistics of the batch or of the sample serve is compared with the formula written out
here a second time. The second half of the sentence holds where g and b are constant over the cells that share
statistics: for a norm over channels each channel has its own g and b, and the mean of what comes out is not b.
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
from normscope.terms.spec import NormSpec

SHAPE = (6, 8, 3, 4)
MEASURED = {"input", "batch", "synchronized"}
ROWS = tuple(name for name, spec in CATALOG.items() if spec.train_from in MEASURED and spec.scale in ("std", "rms"))


def cases(draws: int) -> list[Case]:
    """Both halves of the sentence for each row."""
    return each([f"{name}: {half}" for half in ("the formula", "mean b, variance g²") for name in ROWS], draws)


def run(case: Case, bench: Bench) -> dict[str, float]:
    """How far the layer's output is from the formula, or its mean and variance from b and g²."""
    name, _, half = case["condition"].partition(": ")
    spec, turns = CATALOG[name], generator(case)
    spec = spec.but(groups=4, eps=1e-12) if spec.groups > 1 else spec.but(eps=1e-12)
    x = 1 + 2 * torch.randn(SHAPE, dtype=torch.float64, generator=turns)
    g, b = (torch.randn(SHAPE[1], dtype=torch.float64, generator=turns) for _ in range(2))
    g, b = (g if spec.affine else torch.ones_like(g)), (b if spec.bias else torch.zeros_like(b))
    last = spec.layout == "channels_last"
    given = x.movedim(1, -1) if last else x
    y = functional.normalize(
        given, spec, weight=g - spec.weight_offset if spec.affine else None, bias=b if spec.bias else None
    )
    y = y.movedim(-1, 1) if last else y
    g, b = g.view(-1, 1, 1), b.view(-1, 1, 1)
    if half == "the formula":
        return {"residual": residual(y, g * _standardized(x, spec) + b)}
    mean, variance = _moments(y, spec)
    return {"residual": max(residual(mean, b.expand_as(x)), residual(variance, g.square().expand_as(x)))}


def _moments(x: Tensor, spec: NormSpec) -> tuple[Tensor, Tensor]:
    """Mean and variance of the cells that each cell shares statistics with."""
    grouped = x.unflatten(1, (spec.groups, -1))
    axes = [axis for name, own in (("N", [0]), ("C", [2]), ("S", [3, 4])) if name in spec.over for axis in own]
    mean, variance = grouped.mean(axes, keepdim=True), grouped.var(axes, correction=0, keepdim=True)
    return tuple(part.expand_as(grouped).flatten(1, 2) for part in (mean, variance))  # pyright: ignore[reportReturnType]


def _standardized(x: Tensor, spec: NormSpec) -> Tensor:
    mean, variance = _moments(x, spec)
    square = variance if spec.scale == "std" else variance + mean.square()
    return (x - mean if spec.center else x) / square.sqrt()


CLAIM = Claim(
    id="2.9",
    kind="exact",
    en="All normalizations are one formula h = f(g·(x − μ)/σ + b), whose output has mean b and variance g².",
    zh="各种归一化都是同一公式 h = f(g·(x − μ)/σ + b)，其输出均值为 b、方差为 g²。",
    source="002, section on normalization, the general formula",
    protocol="Every row of the catalog whose statistics come from the batch or the input, with ε = 10⁻¹², random g and "
    "b a channel, on random (6, 8, 3, 4) in float64: the output against the formula written out a second time, and its "
    "mean and variance over the cells that share statistics against b and g².",
    decision=Decision.exact(TOLERANCE),
    sizes={"quick": {"draws": 3}, "full": {"draws": 30}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "LayerNorm", "GroupNorm", "RMSNorm"),
)
