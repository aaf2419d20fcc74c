"""What an implementation of the formula offers: which problems it serves, and how.

A file in one of the folders `PLACES` with a tuple `OFFERS` is found by its place. It may import what it needs (Numba,
Triton) only inside its functions, so that looking at the offers loads nothing. An offer's costs stand in
`normscope.kernels.costs`; without a row there it is only taken where `using` asks for it.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from normscope.kernels.cells import transforming
from normscope.kernels.reference import Statistics
from normscope.terms.spec import NormSpec

Memory = Literal["contiguous", "channels_last", "strided"]
PLACES = ("cpu", "triton", "offers")
SIGNED = ("relu", "leaky_relu")  # whose slope follows from the sign of the output
_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Operands(NamedTuple):
    """The tensors of one call.

    Attributes:
        x: (N, C, *S), or (N, *S, C) where the description says channels last.
        weight: g, (C,), or None for 1.
        bias: b, (C,), or None for 0.
        residual: of the shape of `x`, added before the activation; None for 0.
        mask: (N, *S), boolean, or (N,) lengths; None counts all.
        mean: μ where it is given, one a channel or one a group; None where it is measured.
        var: σ² where it is given.
    """

    x: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    mask: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None


class Problem(NamedTuple):
    """One call without its numbers: all that an offer may look at before it says yes or no.

    What follows from its fields are methods, as in `Statistics`: torch.compile before 2.8 sees no property of a tuple.

    Attributes:
        spec: the description, with the activation.
        shape: of the input.
        dtype: of the input.
        memory: how the input lies: contiguous, with the channels last although the shape has them first, or neither.
        device: "cpu", "cuda"…
        weight: whether there is one.
        bias: whether there is one.
        residual: whether there is one.
        mask: whether there is one.
        given: whether the statistics are given (inference), rather than measured of this input (training).
        told: whether the statistics are wanted beside the output.
        grad: whether a gradient will be asked for.
        odd: what is unusual about the tensors, in words, or None: operands of several dtypes or devices, a subclass
            of Tensor, a function transform.
    """

    spec: NormSpec
    shape: tuple[int, ...]
    dtype: torch.dtype
    memory: Memory = "contiguous"
    device: str = "cpu"
    weight: bool = False
    bias: bool = False
    residual: bool = False
    mask: bool = False
    given: bool = False
    told: bool = False
    grad: bool = False
    odd: str | None = None

    @classmethod
    def of(cls, spec: NormSpec, operands: Operands, told: bool = False) -> Problem:
        """The problem that these operands pose."""
        x, weight, bias, residual, mask, mean, _ = operands
        return cls(
            spec,
            tuple(x.shape),
            x.dtype,
            memory_of(x),
            x.device.type,
            weight is not None,
            bias is not None,
            residual is not None,
            mask is not None,
            mean is not None,
            told,
            torch.is_grad_enabled() and _wants_grad(x, weight, bias, residual),
            _odd(operands),
        )

    def casts_first(self) -> bool:
        """Whether x̂ is rounded to the dtype of the input before g: nothing is lost where that is float32 or wider."""
        return self.spec.cast == "normalized" and self.dtype not in (torch.float32, torch.float64)

    def keeps(self) -> str | None:
        """What is kept for the backward pass beside the input: "y", "residual" or nothing.

        A residual's gradient needs the slope of the activation at the sum, which the input alone does not tell.
        """
        if not self.residual or self.spec.activation is None:
            return None
        return "y" if self.spec.activation in SIGNED else "residual"

    def elements(self) -> int:
        """How many numbers the input holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def channels(self) -> int:
        """C."""
        return self.shape[1 if self.spec.layout == "channels_first" else -1]

    def statistics(self) -> int:
        """How many pairs of μ and σ there are."""
        count = self.spec.groups if "C" in self.spec.over else self.channels()
        if "N" not in self.spec.over:
            count *= self.shape[0]
        if "S" not in self.spec.over:
            count *= self.elements() // max(1, self.shape[0] * self.channels())
        return count


class Made(NamedTuple):
    """What a kernel's forward pass returns.

    Attributes:
        y: of the shape, dtype and memory layout of the input.
        mean: μ of every statistic, flat, in the order of the axes (N, G) or (N, *S) that keep apart, in the dtype
            that `statistic_dtype` says.
        var: σ² before eps, divided by the size, in the same order. Both are empty where statistics were given.
    """

    y: Tensor
    mean: Tensor
    var: Tensor


class Gradients(NamedTuple):
    """What a kernel's backward pass returns: the gradient of each operand in its dtype, None where none is due."""

    x: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None


class Stages(NamedTuple):
    """A kernel for statistics of the batch, cut where several processes merge what they found; see `together`.

    Attributes:
        moments: (problem, operands) → (3, C) float64: how many cells a channel has, their mean and M2.
        sums: (problem, operands, y as kept, gradient of y) → (2, C) float64: Σ dh·x̂ and Σ dh, the gradients of weight
            and bias; the operands hold the merged μ and σ².
        returned: (problem, operands, y as kept, gradient of y, means of g·dh·x̂ and of g·dh over the cells of all
            processes, (C,) float32 each) → the gradients of x and of the residual.
    """

    moments: Callable[[Problem, Operands], Tensor]
    sums: Callable[[Problem, Operands, Tensor | None, Tensor], Tensor]
    returned: Callable[[Problem, Operands, Tensor | None, Tensor, Tensor, Tensor], Gradients]


Run = Callable[[Problem, Operands], tuple[Tensor, Statistics | None]]
Forward = Callable[[Problem, Operands], Made]
Backward = Callable[[Problem, Operands, "Tensor | None", Made, Tensor], Gradients]


@dataclass(frozen=True)
class Offer:
    """One implementation of the formula, for some problems.

    Either `run`, a composition of torch's functions that torch itself differentiates, or the pair `forward` and
    `backward`, which `normscope.kernels.fused` makes one differentiable function of.

    Attributes:
        name: the family that `using` names: "reference", "aten", "numba" or "triton".
        part: what it serves, in a word; (name, part) is unique.
        refuses: the reason, in words, why a problem is not served, or None where it is.
        run: (problem, operands) → output and, where told, the statistics, detached.
        forward: (problem, operands) → `Made`.
        backward: (problem, operands as kept, y as kept, what forward made, gradient of y) → `Gradients`. What
            `Problem.keeps` leaves out is None: `residual` or `y`.
        stages: forward and backward in parts, for the batch of several processes; None where they cannot be cut.
    """

    name: str
    part: str
    refuses: Callable[[Problem], str | None]
    run: Run | None = None
    forward: Forward | None = None
    backward: Backward | None = None
    stages: Stages | None = None

    def supports(self, spec: NormSpec, x: Tensor, **others: Tensor | None) -> str | None:
        """Why this offer does not normalize `x` as described, in words; None where it does.

        Args:
            spec: the description, with the activation.
            x: (N, C, *S), or (N, *S, C) where the description says channels last.
            others: what else the call has, by the names of `Operands`: weight, bias, residual, mask, mean, var.
        """
        return self.refuses(Problem.of(spec, Operands(x, **others)))


@functools.cache
def found() -> tuple[Offer, ...]:
    """Every offer in its place, kernels first: for equal costs the earlier one is taken."""
    offers: list[Offer] = []
    for place in PLACES:
        for entry in sorted(pkgutil.iter_modules([str(Path(__file__).parent / place)]), key=lambda entry: entry.name):
            module = importlib.import_module(f"normscope.kernels.{place}.{entry.name}")
            offers += getattr(module, "OFFERS", ())
    return tuple(offers)


def statistic_dtype(device: str) -> torch.dtype:
    """The dtype in which kernels tell statistics: float64 on the host, float32 elsewhere."""
    return torch.float64 if device == "cpu" else torch.float32


def memory_of(x: Tensor) -> Memory:
    """How `x` lies in memory; a tensor that is both counts as contiguous."""
    if x.is_contiguous():
        return "contiguous"
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return "channels_last"
    if x.ndim == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return "channels_last"
    return "strided"


def _wants_grad(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> bool:
    if x.requires_grad or (weight is not None and weight.requires_grad):  # a loop costs more than what it looks at
        return True
    return (bias is not None and bias.requires_grad) or (residual is not None and residual.requires_grad)


def _odd(operands: Operands) -> str | None:
    x, weight, bias, residual, _, mean, var = operands
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        return f"the residual is {tuple(residual.shape)} of {residual.dtype}, the input not"
    device = x.device
    for value in (weight, bias, residual, mean, var):
        if value is not None and value.device != device:
            return "the operands are on several devices"
    if torch.compiler.is_compiling():
        return None
    for value in (x, weight, bias, residual):
        if value is not None and type(value) not in _PLAIN:
            return "an operand is of a subclass of Tensor"
    if transforming():
        return "a function transform is under way"
    if torch._C._len_torch_dispatch_stack():
        return "a dispatch mode looks at every operation"
    return None
