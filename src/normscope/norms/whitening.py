"""Batch normalization that divides by a matrix: channels are decorrelated, group by group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.kernels.cells import counted, ungroupable
from normscope.kernels.reference import wide
from normscope.norms.leaf import Proxy, leaf
from normscope.norms.shapes import expect_channels, expect_size
from normscope.norms.sources import recomputing
from normscope.terms.catalog import CATALOG
from normscope.terms.errors import ShapeError, SpecError
from normscope.terms.spec import NormSpec


class Whitening(nn.Module):
    """``y = g · Σ^(−½) (x − μ) + b`` for (N, C, *), with μ and Σ over the batch, or running ones at inference.

    The running covariance is averaged, where the papers average its inverse root: the root of an average is the
    whitening of what was seen, and the average of roots is not.

    Args:
        spec: the description; `groups` splits the channels, `iterations` chooses the root.
        num_features: C.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Raises:
        ShapeError: the channels do not split into the groups; at a call, the input has other channels.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_cov: Tensor

    def __init__(self, spec: NormSpec, num_features: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        expect_size(type(self).__name__, num_features=num_features)
        if spec.iterations is not None and spec.iterations < 1:
            raise SpecError(
                "A whitening was asked for with no step of Newton's iteration.",
                found={"iterations": spec.iterations},
                because="each step takes the estimate nearer to the inverse root; none leaves it at the identity",
                do="use iterations ≥ 1, the paper's is 5, or DecorrelatedBatchNorm for the exact root",
            )
        if num_features % spec.groups:
            raise ungroupable(num_features, spec.groups)
        self.spec, self.channels = spec, num_features
        width = num_features // spec.groups
        for name, wanted, start in (("weight", spec.affine, 1.0), ("bias", spec.bias, 0.0)):
            values = torch.full((num_features,), start, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(values) if wanted else None)
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype))
        identity = torch.eye(width, device=device, dtype=dtype).repeat(spec.groups, 1, 1)
        self.register_buffer("running_cov", identity)
        for name in ("num_batches_tracked", "num_batches_skipped"):
            self.register_buffer(name, torch.tensor(0, device=device), persistent=name == "num_batches_tracked")

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """The whitened input; mask (N, *S), or lengths (N,): other cells are neither counted nor written."""
        if isinstance(input, Proxy):
            return leaf(self, input, mask)
        expect_channels(self, input, self.channels)
        if self.training and input.numel() == self.channels:
            raise ShapeError(
                f"{type(self).__name__} was given a single cell to train on.",
                found={"input": tuple(input.shape), "training": True},
                because="one cell shows no covariance: the output would be the bias",
                do="train on more samples or positions, best on many more than channels in a group",
            )
        groups = self.spec.groups
        x = wide(input).movedim(1, 0).flatten(1).unflatten(0, (groups, -1))  # (groups, channels of one, cells)
        if mask is not None:
            mask = counted(input, self.spec, mask)
            x = torch.where(mask.flatten(), x, 0.0)  # what stands there (NaN, perhaps) must not reach the gradient
        mean, cov = self._statistics(x, mask)
        eps = 0.0 if self.spec.eps is None else self.spec.eps
        identity = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device)
        # of a batch that is not finite the deviations are NaN, and so is the output; a root there would be an error
        cov = torch.where(cov.isfinite().all(), cov, identity) + eps * identity
        whitener = inverse_root(cov) if self.spec.iterations is None else newton_root(cov, self.spec.iterations)
        y = (whitener @ (x - mean)).flatten(0, 1)
        if self.weight is not None:
            y = y * wide(self.weight)[:, None]
        if self.bias is not None:
            y = y + wide(self.bias)[:, None]
        shape = (self.channels, input.shape[0], *input.shape[2:])
        y = y.reshape(shape).movedim(0, 1).to(input.dtype)
        return y.contiguous() if mask is None else torch.where(mask.unsqueeze(1), y, input)

    def _statistics(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        groups = len(x)
        if not self.training:
            mean, cov = self.running_mean, self.running_cov
            return mean.to(x.dtype).view(groups, -1, 1), cov.to(x.dtype)
        cells = torch.tensor(x.shape[2]) if mask is None else mask.sum()
        mean = x.sum(2, keepdim=True) / cells.clamp(min=1)
        deviation = x - mean if mask is None else torch.where(mask.flatten(), x - mean, 0.0)
        cov = deviation @ deviation.mT / cells.clamp(min=1)
        if not recomputing():
            with torch.no_grad():
                self._learn(mean.flatten(), cov * (cells / (cells - 1).clamp(min=1)), cells)
        return mean, cov

    def _learn(self, mean: Tensor, cov: Tensor, cells: Tensor) -> None:
        kept = mean.isfinite().all() & cov.isfinite().all() & (cells > 0)
        for name, value in (("running_mean", mean), ("running_cov", cov)):
            buffer = self.get_buffer(name)
            share = 0.1 if self.spec.momentum is None else self.spec.momentum
            buffer.lerp_(torch.where(kept, value.to(buffer.dtype), buffer), share)
        self.get_buffer("num_batches_tracked").add_(kept)
        self.get_buffer("num_batches_skipped").add_(~kept)

    def extra_repr(self) -> str:
        """The channels and what a group is."""
        return f"{self.channels}, groups={self.spec.groups}, eps={self.spec.eps}, momentum={self.spec.momentum}"


class DecorrelatedBatchNorm(Whitening):
    """Whitening by the exact root, ZCA (Huang et al. 2018, "Decorrelated Batch Normalization").

    Args:
        num_features: C.
        num_groups: into how many groups of channels it splits; channels of different groups stay correlated.
        eps: added to the diagonal of the covariance.
        momentum: the weight of the newest batch in the running statistics.
        affine: whether there are a learned weight and bias.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int = 1,
        eps: float = 1e-3,
        momentum: float = 0.1,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        fields = {"groups": num_groups, "eps": eps, "momentum": momentum, "affine": affine, "bias": affine}
        super().__init__(CATALOG["DecorrelatedBatchNorm"].but(**fields), num_features, device, dtype)


class IterNorm(Whitening):
    """Whitening by Newton's iteration (Huang et al. 2019, "Iterative Normalization", algorithm 1).

    Args:
        num_features: C.
        num_groups: into how many groups of channels it splits; channels of different groups stay correlated.
        iterations: T; more whiten further.
        eps: added to the diagonal of the covariance.
        momentum: the weight of the newest batch in the running statistics.
        affine: whether there are a learned weight and bias.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int = 1,
        iterations: int = 5,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        fields = {"groups": num_groups, "eps": eps, "momentum": momentum, "affine": affine, "bias": affine}
        super().__init__(CATALOG["IterNorm"].but(iterations=iterations, **fields), num_features, device, dtype)


def newton_root(cov: Tensor, iterations: int) -> Tensor:
    """An approximate Σ^(−½): ``P ← (3P − P³ Σ/tr Σ)/2`` from the identity, over ``√tr Σ`` at the end.

    Written as the coupled iteration of P and ``P Σ/tr Σ``: the same numbers in exact arithmetic, but rounding errors
    do not grow with the iterations (Higham 2008, "Functions of Matrices").
    """
    trace = cov.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    identity = torch.eye(cov.shape[-1], dtype=cov.dtype, device=cov.device).expand_as(cov)
    inverse, forward = identity, cov / trace
    for _ in range(iterations):
        step = 1.5 * identity - 0.5 * (inverse @ forward)
        inverse, forward = step @ inverse, forward @ step
    return inverse / trace.sqrt()


def inverse_root(cov: Tensor) -> Tensor:
    """Σ^(−½) of symmetric positive matrices; its gradient is finite also where eigenvalues meet."""
    return _InverseRoot.apply(cov)


class _InverseRoot(torch.autograd.Function):
    """W = Σ^(−½). From ``W² = Σ^(−1)``: ``W dW + dW W = −W² dΣ W²``, a Sylvester equation for dW."""

    generate_vmap_rule = True

    @staticmethod
    def forward(cov: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, vectors = torch.linalg.eigh(cov)
        return vectors * values.rsqrt().unsqueeze(-2) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (root,) = ctx.saved_tensors
        solved = _Sylvester.apply(root, (grad + grad.mT) / 2)
        square = root @ root
        return -square @ solved @ square


class _Sylvester(torch.autograd.Function):
    """X of ``W X + X W = G`` for symmetric positive W; differentiable again and again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(root: Tensor, right: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, vectors = torch.linalg.eigh(root)
        sums = values.unsqueeze(-1) + values.unsqueeze(-2)
        return vectors @ ((vectors.mT @ right @ vectors) / sums) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        root, solved = ctx.saved_tensors
        again = _Sylvester.apply(root, grad)
        return -(again @ solved.mT + solved.mT @ again), again
