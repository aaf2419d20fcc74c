"""2.13: scaling the weights leaves the backward Jacobian unchanged and scales the gradient to the weights by 1/λ.

For a layer y = norm(W x): y is the same for λW, so ∂y/∂x is, and ∂L/∂W becomes 1/λ of itself: a large weight takes
small steps. The second half, that y is the same for λx, holds for BN, LN and CN and not for WN, whose σ is that of the
weights alone. All of it needs ε = 0.
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

LAYERS = {"BN": "BatchNorm", "LN": "LayerNorm", "GN": "GroupNorm", "RMS": "RMSNorm", "WN": "", "CN": ""}
PARTS = ("Jacobian under λW", "gradient to λW is 1/λ", "output under λx")
CONDITIONS = tuple(f"{name}: {part}" for part in PARTS for name in LAYERS if (name, part) != ("WN", PARTS[2]))
DIFFERS = "WN: output under λx differs"
LAMBDA = 7.0


def cases(draws: int) -> list[Case]:
    """Each norm under each scaling, and weight normalization where the sentence says that it differs."""
    return each((*CONDITIONS, DIFFERS), draws)


def run(case: Case, bench: Bench) -> dict[str, float]:
    """How far the scaled layer is from what the sentence says of it."""
    name, _, part = case["condition"].partition(": ")
    turns = generator(case)
    x, weight, g = (torch.randn(shape, dtype=torch.float64, generator=turns) for shape in ((6, 5), (8, 5), (8,)))

    def gradients(weight: Tensor) -> tuple[Tensor, Tensor]:
        weight, inputs = weight.clone().requires_grad_(), x.clone().requires_grad_()
        y = _layer(name, inputs, weight, g)
        loss = (y * torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view_as(y)).sum()
        jacobian = torch.autograd.functional.jacobian(lambda z: _layer(name, z, weight.detach(), g), x)
        return jacobian, torch.autograd.grad(loss, weight)[0]  # pyright: ignore[reportReturnType]

    if part.startswith("output"):
        apart = residual(_layer(name, LAMBDA * x, weight, g), _layer(name, x, weight, g))
        return {"residual": max(0.0, 0.1 - apart) if part.endswith("differs") else apart}
    (jacobian, gradient), (scaled_jacobian, scaled_gradient) = gradients(weight), gradients(LAMBDA * weight)
    if part.startswith("Jacobian"):
        return {"residual": residual(scaled_jacobian, jacobian)}
    return {"residual": residual(LAMBDA * scaled_gradient, gradient)}


def _layer(name: str, x: Tensor, weight: Tensor, g: Tensor) -> Tensor:
    """The linear map with its normalization, ε = 0, for (N, in)."""
    if name in ("WN", "CN"):
        weight = weight / weight.norm(dim=1, keepdim=True)
        x = x / x.norm(dim=1, keepdim=True) if name == "CN" else x
        return g * (x @ weight.T)
    spec = CATALOG[LAYERS[name]].but(eps=0.0, bias=False)
    spec = spec.but(groups=2) if name == "GN" else spec
    return functional.normalize(x @ weight.T, spec, weight=g, training=True)


CLAIM = Claim(
    id="2.13",
    kind="exact",
    en="Scaling the weights by λ leaves the backward Jacobian unchanged and scales the weights' gradient by 1/λ; "
    "scaling the data leaves the output of BN, LN and CN unchanged, and not that of WN.",
    zh="权重伸缩 λ 倍不影响反向的 Jacobian，权重梯度变为 1/λ；数据伸缩不变性对 BN、LN、CN 成立，对 WN 不成立。",
    source="002, section on why normalization works",
    protocol="Random layers (5 inputs, 8 outputs, batch 6) in float64 with ε = 0 and λ = 7: Jacobian of the output by "
    "the input, gradient of a fixed linear loss, and output, before and after scaling. For WN the sentence asks for a "
    "difference of a tenth at least; the residual is what is missing of it.",
    decision=Decision.exact(TOLERANCE),
    sizes={"quick": {"draws": 5}, "full": {"draws": 100}},
    cases=cases,
    run=run,
    weigh=weigh,
    draw=draw,
    see=("BatchNorm", "LayerNorm", "cosine", "weight_norm", "NS307"),
)
