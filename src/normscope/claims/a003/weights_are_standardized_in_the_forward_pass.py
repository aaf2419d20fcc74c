"""3.4: weight standardization gives weights of mean 0 and variance 1 over all but the output axis, in the forward pass.

The article's code is the specification, and does not compile: ``std = weight.std(dim=(1,2,3) + 1e-5`` lacks a
parenthesis. Closed where it stands nearest, the ε is added to the tuple; closed before the ε, the standard deviation
has lost the axes that the division needs. With ``keepdim=True`` the code does what the text says, up to its ε, which
stands outside the root, and Bessel's correction, which torch applies.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn as torch_nn

from normscope import nn
from normscope.claims.bench import Bench
from normscope.claims.claim import Claim
from normscope.claims.decision import Decision
from normscope.claims.exact import draw, each, generator, residual, weigh
from normscope.claims.outcomes import Case

CODE = {
    "the article's code as printed": "weight.std(dim=(1,2,3) + 1e-5",
    "the article's code, closed at the end": "weight.std(dim=(1,2,3) + 1e-5)",
    "the article's code, closed before ε": "weight.std(dim=(1,2,3)) + 1e-5",
    "the article's code, closed, with keepdim": "weight.std(dim=(1,2,3), keepdim=True) + 1e-5",
}
OURS = "normscope.nn.weight_standardization"
FORWARD = "the stored weight stays as it is"
TOLERANCE = 1e-3  # ε and the choice of m or m − 1 move the variance of a row of 72 weights by more than rounding
_IMPOSSIBLE = 1.0  # the residual of code that does not run


def cases(draws: int) -> list[Case]:
    """Each reading of the code, our own function, and what it does to the stored weight."""
    return each((*CODE, OURS, FORWARD), draws)


def run(case: Case, bench: Bench) -> dict[str, float]:
    """How far mean and variance of the rows are from 0 and 1."""
    weight = 0.3 + 0.5 * torch.randn(16, 8, 3, 3, dtype=torch.float64, generator=generator(case))
    if case["condition"] in CODE:
        used = _as_written(CODE[case["condition"]], weight)
    else:
        layer = torch_nn.Conv2d(8, 16, 3, bias=False, dtype=torch.float64)
        layer.weight = torch_nn.Parameter(weight.clone())
        layer = nn.weight_standardization(layer)
        if case["condition"] == FORWARD:
            layer(torch.randn(2, 8, 5, 5, dtype=torch.float64)).sum().backward()
            return {"residual": residual(next(layer.parameters()).detach(), weight)}
        used = layer.weight.detach()
    if used is None:
        return {"residual": _IMPOSSIBLE}
    rows = used.flatten(1)
    nearest = min(residual(rows.var(1, correction=correction), torch.ones(16)) for correction in (0, 1))
    return {"residual": max(residual(rows.mean(1), torch.zeros(16)), nearest)}


def _as_written(deviation: str, weight: Tensor) -> Tensor | None:
    """What the article's three lines give, or None where they do not run."""
    try:
        std = eval(deviation, {"weight": weight})
        return (weight - weight.mean(dim=(1, 2, 3), keepdim=True)) / std
    except (SyntaxError, TypeError, RuntimeError):
        return None


CLAIM = Claim(
    id="3.4",
    kind="exact",
    en="Weight standardization gives the weights mean 0 and variance 1 over all but the output axis, in the forward "
    "pass only, as in the article's code.",
    zh="权重标准化使除输出轴外的权重均值为 0、方差为 1，且只在前向时变换；见文中代码。",
    source="003, section on weight standardization and its code",
    protocol="A random convolution (16, 8, 3, 3) in float64: the article's line under each reading of its missing "
    "parenthesis, and normscope.nn.weight_standardization; largest distance of the rows' means from 0 and variances "
    "(by m or m − 1, the nearer) from 1. Code that does not run has the residual 1.",
    decision=Decision.exact(TOLERANCE, "the article's ε is no more than this"),
    sizes={"quick": {"draws": 3}, "full": {"draws": 30}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("weight_standardization",),
)
