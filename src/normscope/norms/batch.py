"""Batch norms that torch does not have: a source of statistics each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from normscope.norms.classes import _OfFeatures
from normscope.norms.leaf import Proxy, leaf
from normscope.norms.module import Norm
from normscope.norms.sources.online import DECAY
from normscope.norms.sources.renormalized import CORRECTIONS
from normscope.terms.catalog import CATALOG
from normscope.terms.errors import SpecError


class GhostBatchNorm(_OfFeatures):
    """Batch normalization of (N, C, *) over virtual batches (Hoffer, Hubara, Soudry 2017).

    Args:
        num_features: C.
        virtual_batch_size: samples that share statistics while training; the last virtual batch may be smaller.
        eps: the guard of the division.
        momentum: the weight of one virtual batch in the running statistics.
        affine: whether there are a learned weight and bias.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
    """

    _row = "GhostBatchNorm"

    def __init__(
        self,
        num_features: int,
        virtual_batch_size: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, device=device, dtype=dtype, virtual_batch=virtual_batch_size
        )


class BatchRenorm(_OfFeatures):
    """Batch normalization of (N, C, *) corrected towards the running statistics (Ioffe 2017, algorithm 1).

    Args:
        num_features: C.
        eps: the guard of the division.
        momentum: the weight of the newest batch in the running statistics, α of the paper.
        affine: whether there are a learned weight and bias.
        r_max: the bound of r, and the batches at which it starts to grow from 1 and reaches that bound.
        d_max: the bound of d, and the batches at which it starts to grow from 0 and reaches that bound.
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Raises:
        SpecError: a bound that would shrink, or r_max below 1.
    """

    _row = "BatchRenorm"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-3,
        momentum: float | None = 0.01,
        affine: bool = True,
        r_max: tuple[float, int, int] = CORRECTIONS[0],
        d_max: tuple[float, int, int] = CORRECTIONS[1],
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if any(not isinstance(bound, tuple) or len(bound) != 3 for bound in (r_max, d_max)):
            raise SpecError(
                "Batch renormalization was asked for bounds without the batches at which they grow.",
                found={"r_max": r_max, "d_max": d_max},
                because="training starts as batch normalization and lets r and d go step by step",
                do="give (limit, first batch, last batch), such as r_max=(3.0, 5_000, 40_000)",
            )
        if r_max[0] < 1 or d_max[0] < 0 or r_max[1] > r_max[2] or d_max[1] > d_max[2]:
            raise SpecError(
                "Batch renormalization was asked for bounds that cannot hold.",
                found={"r_max": r_max, "d_max": d_max},
                because="r lies in [1/r_max, r_max] and d in [−d_max, d_max], and both bounds grow with time",
                do="give (limit, first batch, last batch) with r_max ≥ 1, d_max ≥ 0 and first ≤ last",
            )
        super().__init__(num_features, eps, momentum, affine, device=device, dtype=dtype, corrections=(r_max, d_max))


class OnlineNorm(Norm):
    """Normalization of (N, C, *) by the stream of samples before each one (Chiley et al. 2019).

    It needs no batch: samples are normalized one by one, also within a batch. The gradient is the paper's control
    process, not the derivative of the forward pass, and has no second derivative.

    Args:
        num_features: C.
        eps: the guard of the division.
        decay_forward: decay of the stream's statistics, α_f.
        decay_backward: decay of the control of the gradient, α_b.
        affine: whether there are a learned weight and bias.
        layer_scaling: whether each sample is divided by its root mean square at the end, which stops errors of the
            estimates from growing with depth.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        decay_forward: float = DECAY[0],
        decay_backward: float = DECAY[1],
        affine: bool = True,
        layer_scaling: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if not (0 <= decay_forward < 1 and 0 <= decay_backward < 1):
            raise SpecError(
                "Online normalization was asked for a decay that does not forget.",
                found={"decay_forward": decay_forward, "decay_backward": decay_backward},
                because="both are shares of the past that are kept",
                do="give numbers from 0 up to, not including, 1, such as 0.999 and 0.99",
            )
        spec = CATALOG["OnlineNorm"].but(eps=eps, decay=(decay_forward, decay_backward), affine=affine, bias=affine)
        super().__init__(spec, num_features, device=device, dtype=dtype)
        scaling = CATALOG["GroupNorm"].but(groups=1, center=False, scale="rms", affine=False, bias=False)
        self.scaling = Norm(scaling, num_features) if layer_scaling else None

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The normalized input; mask (N, *S), or lengths (N,): other cells are neither counted nor written."""
        if isinstance(input, Proxy):
            return leaf(self, input, mask)
        y = super().forward(input, mask)
        return y if self.scaling is None else self.scaling(y, mask)
