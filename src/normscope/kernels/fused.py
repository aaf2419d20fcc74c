"""A kernel's forward and backward as one differentiable function.

Without compilation this is an autograd function; under `torch.compile` it is one operator, ``normscope::fused``, with
a backward operator, so that the graph does not break. A gradient of the gradient is taken by the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from normscope.kernels import reference
from normscope.kernels.cells import cells
from normscope.kernels.offer import SIGNED, Gradients, Made, Offer, Operands, Problem, found, statistic_dtype
from normscope.kernels.reference import Statistics
from normscope.terms.spec import NormSpec

OFFERS = found()
_PAIRS = {(offer.name, offer.part): offer for offer in OFFERS if offer.run is None}


def run(offer: Offer, problem: Problem, operands: Operands) -> tuple[Tensor, Statistics | None]:
    """The output and, where told, the statistics, by the kernel of `offer`."""
    if offer.run is not None:
        return offer.run(problem, operands)
    if operands.residual is not None:
        operands = operands._replace(residual=alike(operands.residual, operands.x, problem))
    if torch.compiler.is_compiling():
        y, mean, var = torch.ops.normscope.fused(*_tensors(operands), *_words(offer, problem))
    elif problem.grad:
        made = _Fused.apply(offer, problem, *_tensors(operands))  # type: ignore[misc]
        if not problem.told:
            return made, None
        y, mean, var = made
    else:
        y, mean, var = _forward(offer, problem, operands)
    return y, statistics(problem, operands.x, mean, var) if problem.told else None


def statistics(problem: Problem, x: Tensor, mean: Tensor, var: Tensor) -> Statistics:
    """Flat statistics, shaped to meet the split view of `x`."""
    view = cells(x, problem.spec)
    shape = [1 if dim in view.dims else size for dim, size in enumerate(view.split(x).shape)]
    if "C" not in problem.spec.over:
        shape[view.axis + 1] = 1
    return Statistics(mean.view(shape), var.view(shape), view.count(view.split(x)))


def _forward(offer: Offer, problem: Problem, operands: Operands) -> Made:
    assert offer.forward is not None
    return offer.forward(problem, operands)


def _backward(
    offer: Offer, problem: Problem, operands: Operands, y: Tensor | None, mean: Tensor, var: Tensor, grad: Tensor
) -> Gradients:
    assert offer.backward is not None
    grad = alike(grad, operands.x, problem)
    made = Gradients(*offer.backward(problem, operands, y, Made(operands.x, mean, var), grad))
    return made._replace(residual=grad) if problem.residual and problem.spec.activation is None else made


def alike(value: Any, x: Tensor, problem: Problem) -> Any:
    """`value` in the memory layout of `x`."""
    if value is None or problem.memory == "strided":
        return value
    if problem.memory == "contiguous":
        return value.contiguous()
    return value.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def _tensors(operands: Operands) -> tuple[Tensor | None, ...]:
    x, weight, bias, residual, _, mean, var = operands
    return x, weight, bias, residual, mean, var


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, offer: Offer, problem: Problem, *tensors: Any) -> Any:
        x, weight, bias, residual, given_mean, given_var = tensors
        y, mean, var = _forward(offer, problem, Operands(x, weight, bias, residual, None, given_mean, given_var))
        kept = problem.keeps()
        ctx.offer, ctx.problem = offer, problem
        ctx.save_for_backward(
            x, weight, bias, residual if kept == "residual" else None, given_mean, given_var,
            y if kept == "y" else None, mean, var,
        )  # fmt: skip
        ctx.set_materialize_grads(False)
        if not problem.told:
            return y
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if grad is None:
            return (None,) * 8
        x, weight, bias, residual, given_mean, given_var, y, mean, var = ctx.saved_tensors
        operands = Operands(x, weight, bias, residual, None, given_mean, given_var)
        if torch.is_grad_enabled():  # create_graph=True
            made = by_reference(ctx.problem, operands, y, grad)
        else:
            made = _backward(ctx.offer, ctx.problem, operands, y, mean, var, grad)
        needed = ctx.needs_input_grad[2:6]
        return None, None, *(value if need else None for value, need in zip(made, needed, strict=True)), None, None


def by_reference(
    problem: Problem,
    operands: Operands,
    y: Tensor | None,
    grad: Tensor,
    formula: Callable[..., Tensor] = reference.normalize,
) -> Gradients:
    """The gradients as a graph that can be differentiated again, by differentiating the formula."""
    spec, kept = problem.spec, problem.keeps()
    # aliases, so that one operand made of another does not count twice
    aliases = [value if value is None else value.view_as(value) for value in operands[:4]]
    x, weight, bias, residual = (
        value if value is None or value.requires_grad or not value.is_floating_point() else value.requires_grad_()
        for value in aliases
    )
    assert x is not None
    upstream = grad
    if kept == "y":
        assert y is not None
        slope = 0.0 if spec.activation == "relu" else 0.01
        upstream = grad * torch.where(y > 0, 1.0, slope).to(grad.dtype)
        spec = spec.but(activation=None)
    given = None
    if operands.mean is not None and operands.var is not None:
        view = cells(x, spec)
        given = Statistics(view.along_channels(operands.mean), view.along_channels(operands.var), 0)
    h = formula(x, spec, weight=weight, bias=bias, statistics=given, residual=residual)
    inputs = [value for value in (x, weight, bias, residual) if value is not None]
    taken = iter(torch.autograd.grad(h, inputs, upstream, create_graph=True, allow_unused=True))
    made = Gradients(*(None if value is None else next(taken) for value in (x, weight, bias, residual)))
    return made if kept == "residual" or not problem.residual else made._replace(residual=upstream)


# the operator, for torch.compile ----------------------------------------------------------------------


def _words(offer: Offer, problem: Problem) -> tuple[Any, ...]:
    """What an operator can be told of the offer and the description: words and numbers."""
    spec = problem.spec
    over = "".join([axis for axis in "NCS" if axis in spec.over])
    return (
        offer.name, offer.part, over, spec.groups, spec.layout, spec.center, spec.scale or "",
        -1.0 if spec.eps is None else spec.eps, spec.eps_place, spec.weight_offset, spec.cast, spec.activation or "",
    )  # fmt: skip


def _told(words: tuple[Any, ...], operands: Operands, residual: bool) -> tuple[Offer, Problem]:
    name, part, over, groups, layout, center, scale, eps, eps_place, weight_offset, cast, activation = words
    spec = NormSpec(
        over, "batch", "batch", groups, layout, center, scale or None, None if eps < 0 else eps, eps_place,
        weight_offset=weight_offset, cast=cast, activation=activation or None,
    )  # fmt: skip
    problem = Problem.of(spec, operands)._replace(residual=residual, grad=True)
    return _PAIRS[name, part], problem


def _apart(values: Iterable[Tensor]) -> Any:
    """The tensors, none in the memory of another: an operator's outputs must not."""
    seen: dict[int, Tensor] = {}
    for place, value in enumerate(values):
        taken = {one.untyped_storage().data_ptr() for one in seen.values() if one.numel()}
        seen[place] = value.clone() if value.untyped_storage().data_ptr() in taken else value
    return tuple(seen.values())


@torch.library.custom_op("normscope::fused", mutates_args=())
def _fused(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mean: Tensor | None,
    var: Tensor | None, name: str, part: str, over: str, groups: int, layout: str, center: bool, scale: str, eps: float,
    eps_place: str, weight_offset: float, cast: str, activation: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    operands = Operands(x, weight, bias, residual, None, mean, var)
    words = (name, part, over, groups, layout, center, scale, eps, eps_place, weight_offset, cast, activation)
    return _apart(_forward(*_told(words, operands, residual is not None), operands))


@_fused.register_fake
def _(x: Tensor, weight: Any, bias: Any, residual: Any, mean: Any, var: Any, *words: Any) -> Any:
    over, groups, layout = words[2:5]
    channels = x.shape[1 if layout == "channels_first" else -1]
    count = groups if "C" in over else channels
    if "N" not in over:
        count = count * x.shape[0]
    if "S" not in over:
        positions = x.shape[2:] if layout == "channels_first" else x.shape[1:-1]
        for size in positions:
            count = count * size
    seen = [x.new_empty((count if mean is None else 0,), dtype=statistic_dtype(x.device.type)) for _ in range(2)]
    return torch.empty_like(x), *seen


@torch.library.custom_op("normscope::fused_backward", mutates_args=())
def _fused_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    given_mean: Tensor | None, given_var: Tensor | None, y: Tensor | None, mean: Tensor, var: Tensor, added: bool,
    name: str, part: str, over: str, groups: int, layout: str, center: bool, scale: str, eps: float, eps_place: str,
    weight_offset: float, cast: str, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    operands = Operands(x, weight, bias, residual, None, given_mean, given_var)
    words = (name, part, over, groups, layout, center, scale, eps, eps_place, weight_offset, cast, activation)
    offer, problem = _told(words, operands, added and activation != "")
    made = _backward(offer, problem, operands, y, mean, var, grad)
    return _apart(grad.new_empty(0) if value is None else value for value in made)


@_fused_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Any, bias: Any, residual: Any, given_mean: Any, given_var: Any, y: Any,
    mean: Any, var: Any, added: bool, *words: Any,
) -> Any:  # fmt: skip
    affine = (grad.new_empty(0) if value is None else torch.empty_like(value) for value in (weight, bias))
    return torch.empty_like(x), *affine, torch.empty_like(x) if added and words[-1] else grad.new_empty(0)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, bias, residual, given_mean, given_var, *words = inputs
    y, mean, var = output
    signed = residual is not None and words[-1] in SIGNED
    other = residual is not None and words[-1] and not signed
    ctx.words, ctx.added = words, residual is not None
    ctx.save_for_backward(
        x, weight, bias, residual if other else None, given_mean, given_var, y if signed else None, mean, var
    )


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> Any:
    made = torch.ops.normscope.fused_backward(grad, *ctx.saved_tensors, ctx.added, *ctx.words)
    needed = ctx.needs_input_grad[:4]
    present = [value is not None for value in ctx.saved_tensors[:3]]
    made = [value if need and there else None for value, need, there in zip(made, needed, [*present, True])]
    if ctx.added and not ctx.words[-1] and needed[3]:
        made[3] = grad
    return *made, *(None,) * (2 + len(ctx.words))


def _keep_again(ctx: Any, inputs: Any, output: Any) -> None:
    grad, x, weight, bias, residual, given_mean, given_var, y, _, _, added, *words = inputs
    ctx.words, ctx.added = words, added
    ctx.save_for_backward(grad, x, weight, bias, residual, given_mean, given_var, y)


def _differentiate_again(ctx: Any, *upstream: Tensor) -> Any:
    """The gradient of the gradient, by the reference."""
    grad, x, weight, bias, residual, given_mean, given_var, y = ctx.saved_tensors
    operands = Operands(x, weight, bias, residual, None, given_mean, given_var)
    _, problem = _told(tuple(ctx.words), operands, ctx.added and ctx.words[-1] != "")
    inputs = [None if value is None else value.detach().requires_grad_() for value in (grad, x, weight, bias, residual)]
    assert inputs[0] is not None
    with torch.enable_grad():
        fresh = operands._replace(x=inputs[1], weight=inputs[2], bias=inputs[3], residual=inputs[4])
        made = by_reference(problem, fresh, y, inputs[0])
        pairs = [(value, up) for value, up in zip(made, upstream) if value is not None and value.requires_grad]
        wanted = [value for value in inputs if value is not None]
        values, ups = zip(*pairs)
        taken = iter(torch.autograd.grad(values, wanted, ups, allow_unused=True))
    first = [None if value is None else next(taken) for value in inputs]
    return *first, *(None,) * (6 + len(ctx.words))


_fused.register_autograd(_differentiate, setup_context=_keep)
_fused_backward.register_autograd(_differentiate_again, setup_context=_keep_again)
