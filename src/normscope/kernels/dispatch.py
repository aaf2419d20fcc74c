"""Which offer computes: the one that `using` forces, else the cheapest by the table that serves the problem.

The choice changes no number but by rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normscope.kernels import fused
from normscope.kernels.costs import LEAST, cost, may_gain
from normscope.kernels.direct import direct, fits
from normscope.kernels.force import forced
from normscope.kernels.offer import Offer, Operands, Problem
from normscope.kernels.reference import Statistics, finish
from normscope.terms.errors import SpecError
from normscope.terms.spec import NormSpec

# the offers that torch differentiates, in the order in which they are tried where nothing was measured
_PLAIN = tuple(offer for name in ("aten", "reference") for offer in fused.OFFERS if offer.name == name)
_CHOSEN: dict[tuple[str | None, Problem], Offer] = {}  # looking at the table takes as long as a small kernel
_MANY = 4096


def normalized(
    x: Tensor,
    spec: NormSpec,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The formula with the statistics of `x` itself."""
    return _computed(spec, Operands(x, weight, bias, residual, mask), told=False)[0]


def measured(
    x: Tensor,
    spec: NormSpec,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Statistics]:
    """The formula with the statistics of `x` itself, and those statistics (detached)."""
    y, seen = _computed(spec, Operands(x, weight, bias, residual, mask), told=True)
    assert seen is not None
    return y, seen


def applied(
    x: Tensor,
    spec: NormSpec,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The formula with given statistics, one a channel or one a group: (C,) or (G,)."""
    return _computed(spec, Operands(x, weight, bias, residual, mask, mean, var), told=False)[0]


def at_once(
    x: Tensor, spec: NormSpec, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None = None
) -> Tensor | None:
    """`normalized`, bit for bit, by one call of ATen; None where that serves not, or a kernel may be cheaper."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.ndim < 2 or forced() is not None:
        return None
    found, where = direct(spec)
    if found is None or not (residual is None or fits(residual, x)):
        return None
    if x.numel() >= LEAST and (residual is not None or may_gain(where, x)):
        return None
    channels = x.shape[1:2] if spec.layout == "channels_first" else x.shape[-1:]
    if not (weight is None or weight.shape == channels) or not (bias is None or bias.shape == channels):
        return None
    try:
        y = found(x, weight, bias)
    except RuntimeError:
        return None  # the long way does it, or says what is wrong
    return None if y is None else finish(y, x, spec, residual)


def small(x: Tensor) -> bool:
    """Whether ATen serves `x` without a look at the table: it is small, and nothing is forced."""
    return x.numel() < LEAST and forced() is None


def takes_kernel(
    x: Tensor, spec: NormSpec, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None = None
) -> bool:
    """Whether a kernel, rather than a composition of torch's functions, would measure and normalize `x`."""
    if small(x):
        return False
    return choose(Problem.of(spec, Operands(x, weight, bias, residual), told=True)).run is None


def staged(problem: Problem) -> Offer | None:
    """The offer whose stages serve every process of a group, whatever the batch of this one; None where there is none.

    All must go one way, so nothing is asked that may differ between them: neither the size of the batch nor strides.
    """
    memory = "contiguous" if problem.memory == "strided" else problem.memory
    many = problem._replace(shape=(_MANY, *problem.shape[1:]), memory=memory)
    for offer in fused.OFFERS:
        known = forced() == offer.name or (forced() is None and cost(offer.name, many) is not None)
        if offer.stages is not None and known and offer.refuses(many) is None:
            return offer
    return None


def choose(problem: Problem) -> Offer:
    """The offer that computes a problem.

    Raises:
        SpecError: the offer that `using` forces does not serve it.
    """
    name = forced()
    if torch.compiler.is_compiling():  # sizes may be symbols
        return _cheapest(problem) if name is None else _forced(name, problem)
    offer = _CHOSEN.get((name, problem))
    if offer is None:
        if len(_CHOSEN) >= _MANY:
            _CHOSEN.clear()
        offer = _CHOSEN[name, problem] = _cheapest(problem) if name is None else _forced(name, problem)
    return offer


def _cheapest(problem: Problem) -> Offer:
    best, least = None, float("inf")
    for offer in fused.OFFERS:
        expected = cost(offer.name, problem)
        if expected is not None and expected < least and offer.refuses(problem) is None:
            best, least = offer, expected
    return _plain(problem) if best is None else best


def _computed(spec: NormSpec, operands: Operands, told: bool) -> tuple[Tensor, Statistics | None]:
    if small(operands.x):
        x, masked, given = operands.x, operands.mask is not None, operands.mean is not None
        problem = Problem(spec, tuple(x.shape), x.dtype, mask=masked, given=given, told=told)
        offer = _plain(problem)
    else:
        problem = Problem.of(spec, operands, told)
        offer = choose(problem)
    return fused.run(offer, problem, operands)


def _plain(problem: Problem) -> Offer:
    for offer in _PLAIN:
        if offer.refuses(problem) is None:
            return offer
    return _PLAIN[-1]


def _forced(name: str, problem: Problem) -> Offer:
    reasons = []
    for offer in fused.OFFERS:
        if offer.name == name:
            reason = offer.refuses(problem)
            if reason is None:
                return offer
            reasons.append(reason)
    raise SpecError(
        f'A normalization was asked of "{name}", which does not serve it.',
        found={"input": f"{problem.shape} of {problem.dtype}, {problem.memory}, on {problem.device}"},
        because="; ".join(dict.fromkeys(reasons)) or "it offers nothing in this installation",
        do="leave the block `using`, or see normscope.kernels.explain for what serves",
    )
