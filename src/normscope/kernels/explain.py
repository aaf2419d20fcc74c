"""`explain`: why a call is computed as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope.kernels import dispatch, fused
from normscope.kernels.costs import LEAST, cost, measured
from normscope.kernels.force import forced
from normscope.kernels.offer import Operands, Problem
from normscope.terms.datum import Datum
from normscope.terms.errors import SpecError
from normscope.terms.spec import NormSpec


@dataclass(frozen=True, repr=False)
class Candidate(Datum):
    """One offer, looked at for one problem.

    Attributes:
        name: the name that `normscope.kernels.using` takes.
        part: which of the offers of that name.
        refuses: why it does not serve the problem, or None.
        cost: microseconds that the table expects of forward and backward together; None where nobody measured.
        chosen: whether it computes.
    """

    name: str
    part: str
    refuses: str | None = None
    cost: float | None = None
    chosen: bool = False


@dataclass(frozen=True, repr=False)
class Explanation(Datum):
    """Which offers there are for a call, which one computes it, and why.

    Attributes:
        problem: the call, in words.
        why: why the chosen one was chosen.
        candidates: every offer.
    """

    problem: str
    why: str
    candidates: tuple[Candidate, ...]

    @property
    def choice(self) -> str:
        """The name of the offer that computes."""
        return next(one.name for one in self.candidates if one.chosen)

    def __repr__(self) -> str:
        lines = [self.problem]
        for one in self.candidates:
            said = one.refuses or ("serves" if one.cost is None else f"serves, about {one.cost:,.0f} µs")
            lines.append(f"  {'→' if one.chosen else ' '} {one.name:<9} {one.part:<10} {said}")
        return "\n".join([*lines, f"  because {self.why}"])


def explain(
    module_or_spec: nn.Module | NormSpec,
    x: Tensor,
    *,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    training: bool | None = None,
) -> Explanation:
    """The offers for normalizing `x`, the reasons of those that do not serve, and the choice.

    Args:
        module_or_spec: a layer of `normscope.nn`, the recurrent ones too, or a description (`normscope.spec_of` reads
            one off other layers).
        x: an input.
        residual: what is added before the activation, if anything is.
        mask: which cells count, if not all.
        training: whether statistics are measured of `x`; None takes the mode of the module, and True for a description.

    Raises:
        SpecError: the module has no description.

    >>> import torch, normscope as ns
    >>> ns.kernels.explain(ns.nn.GroupNorm(2, 4), torch.ones(1, 4, 2)).choice
    'aten'
    """
    own: Any = getattr(module_or_spec, "explained", None)
    if own is not None:  # a layer of many steps
        return own(x)
    problem, _ = posed(module_or_spec, x, residual, mask, training)
    chosen = dispatch.choose(problem)
    seen = tuple(
        Candidate(offer.name, offer.part, offer.refuses(problem), cost(offer.name, problem), offer is chosen)
        for offer in fused.OFFERS
    )
    return Explanation(_in_words(problem), _why(problem), seen)


def posed(
    module_or_spec: nn.Module | NormSpec, x: Tensor, residual: Tensor | None, mask: Tensor | None, training: bool | None
) -> tuple[Problem, Operands]:
    """The problem that a layer or a description has with `x`, as for `explain`, and its operands.

    Raises:
        SpecError: the module has no description.
    """
    spec = module_or_spec if isinstance(module_or_spec, NormSpec) else getattr(module_or_spec, "spec", None)
    if not isinstance(spec, NormSpec):
        raise SpecError(
            f"The kernels of a {type(module_or_spec).__name__} were asked for.",
            found="a module without a description",
            because="an offer is chosen by what a normalization computes, and how is read off its `spec`",
            do="pass normscope.spec_of(module), or a layer of normscope.nn",
        )
    if training is None:
        training = module_or_spec.training if isinstance(module_or_spec, nn.Module) else True
    operands = _operands(module_or_spec, spec, x, residual, mask, training)
    return Problem.of(spec, operands), operands


def _operands(
    module: Any, spec: NormSpec, x: Tensor, residual: Tensor | None, mask: Tensor | None, training: bool
) -> Operands:
    channels = x.shape[1 if spec.layout == "channels_first" else -1]
    if isinstance(module, NormSpec):
        weight, bias = (torch.ones(channels) if wanted else None for wanted in (spec.affine, spec.bias))
    else:
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    source = spec.train_from if training else spec.infer_from
    held = None if source in ("input", "batch", "ghost") else torch.ones(channels, device=x.device)
    axes = len(getattr(module, "shape", (1,)))
    if axes > 1:
        x, residual = x.flatten(-axes), None if residual is None else residual.flatten(-axes)
    weight, bias = (None if value is None else value.to(x.device).flatten() for value in (weight, bias))
    return Operands(x, weight, bias, residual, mask, held, held)


def _in_words(problem: Problem) -> str:
    spec = problem.spec
    over = "".join(axis for axis in "NCS" if axis in spec.over)
    parts = [f"over {over}", f"groups={spec.groups}"] if spec.groups > 1 else [f"over {over}"]
    parts += [spec.activation] if spec.activation else []
    parts += ["+ residual"] * problem.residual
    parts += ["masked"] * problem.mask + ["given statistics"] * problem.given
    size = "×".join(map(str, problem.shape))
    return f"{', '.join(parts)}: {size} {str(problem.dtype).removeprefix('torch.')}, {problem.memory}, {problem.device}"


def _why(problem: Problem) -> str:
    if forced() is not None:
        return f'`using("{forced()}")` asks for it'
    if problem.elements() < LEAST:
        return f"below {LEAST:,} numbers the call itself is what costs"
    if problem.device == "cuda" and not measured("cuda"):
        return 'nothing has been measured on CUDA yet, so it is torch\'s own; `using("triton")` asks for the other'
    return "it is the cheapest that serves, by the table of measured costs; without a row there, torch's own"
