"""The one formula as a function: `normalize`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from normscope.norms.sources import Call, run
from normscope.terms.spec import NormSpec

__all__ = ["normalize"]


def normalize(
    x: Tensor,
    spec: NormSpec,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
    mask: Tensor | None = None,
    training: bool = True,
    residual: Tensor | None = None,
) -> Tensor:
    """``f(g · (x − μ)/σ + b + r)``, with μ and σ from where `spec` says.

    Args:
        x: (N, C, *S), or (N, *S, C) where the description says channels last.
        spec: which cells share statistics, where these come from, and what σ is.
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        state: the kept statistics by torch's names (``running_mean``…); updated in place while training.
        mask: (N, *S), boolean, or (N,) lengths; other cells are neither counted nor written.
        training: whether `spec.train_from` or `spec.infer_from` is the source.
        residual: r, of the shape of `x`, or None for 0; it takes no part in the statistics.

    Returns:
        A tensor of the shape, dtype and memory layout of `x`.

    Raises:
        ShapeError: the channels do not split into the groups, or the mask does not fit.
        DataError: kept statistics are asked for, and `state` has none.

    >>> import torch
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> batch = NormSpec(over="NS", train_from="batch", infer_from="batch", eps=1e-12)
    >>> normalize(x, batch).flatten()
    tensor([-1.,  1.])
    """
    return run(Call(x, spec, weight, bias, state, mask, residual=residual), training)
