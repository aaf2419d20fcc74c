"""The one formula as a function: `normalize`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from normscope.kernels.dispatch import at_once
from normscope.norms.module import described
from normscope.norms.shapes import expect_floats
from normscope.norms.sources import Call, run
from normscope.terms.errors import ShapeError, SpecError
from normscope.terms.spec import NormSpec

__all__ = ["normalize"]

_OF_THE_INPUT = ("input", "batch")


def normalize(
    x: Tensor,
    spec: NormSpec | str,
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
        spec: which cells share statistics, where these come from, and what σ is; or a name of the catalog.
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        state: the kept statistics by torch's names (``running_mean``…); updated in place while training.
        mask: (N, *S), boolean, or (N,) lengths; other cells are neither counted nor written.
        training: whether `spec.train_from` or `spec.infer_from` is the source.
        residual: r, of the shape of `x`, or None for 0; it takes no part in the statistics.

    Returns:
        A tensor of the shape, dtype and memory layout of `x`.

    Raises:
        UnknownNameError: the catalog has no such name.
        SpecError: σ is a matrix.
        ShapeError: the channels do not split into the groups, or the mask, the weight or the bias do not fit.
        DataError: `x` is no tensor of real numbers; kept statistics are asked for, and `state` has none.

    >>> import torch
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> batch = NormSpec(over="NS", train_from="batch", infer_from="batch", eps=1e-12)
    >>> normalize(x, batch).flatten()
    tensor([-1.,  1.])
    """
    if mask is None and state is None and type(spec) is NormSpec:
        source = spec.train_from if training else spec.infer_from
        if source in _OF_THE_INPUT and (y := at_once(x, spec, weight, bias, residual)) is not None:
            return y
    spec = described(spec)
    expect_floats("normalize", x)
    axis = 1 if spec.layout == "channels_first" else -1
    if spec.scale == "whiten":
        raise SpecError(
            "normalize was asked to whiten.",
            found={"scale": spec.scale},
            because="whitening divides by a matrix, whose running average no pair of buffers holds",
            do="use normscope.nn.DecorrelatedBatchNorm or normscope.nn.IterNorm",
        )
    if x.ndim < axis + 1 or x.ndim == 0:
        raise ShapeError(
            "normalize was given a tensor without an axis of channels.",
            found={"x": tuple(x.shape), "layout": spec.layout},
            because="it reads (N, C, *S), or (N, *S, C) where the description says channels last",
            do="pass x[None] where the axis of samples is missing",
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.shape != x.shape[axis : axis + 1 or None]:
            raise ShapeError(
                f"normalize was given a {name} that does not fit its input.",
                found={name: tuple(value.shape), "x": tuple(x.shape), "layout": spec.layout},
                because="there is one number a channel",
                do=f"pass ({x.shape[axis]},)",
            )
    return run(Call(x, spec, weight, bias, state, mask, residual=residual), training)
