"""Statistics of the tensor at hand, and of nothing at all."""

from __future__ import annotations

from torch import Tensor

from normscope.kernels import dispatch
from normscope.kernels.reference import Statistics, finish, scale_and_shift
from normscope.norms.sources.source import Call, Source


class Measured(Source):
    """The input's own statistics; over which cells, sample by sample or over the batch, is `spec.over`."""

    def normalize(self, call: Call) -> Tensor:
        """Normalize without keeping the statistics."""
        return dispatch.normalized(call.x, call.spec, call.weight, call.bias, call.mask, call.residual)

    def measure(self, call: Call) -> tuple[Tensor, tuple[Statistics, ...]]:
        """Normalize, and say what was measured."""
        y, seen = dispatch.measured(call.x, call.spec, call.weight, call.bias, call.mask, call.residual)
        return y, (seen,)


class Nothing(Source):
    """No statistics: the affine map alone."""

    def normalize(self, call: Call) -> Tensor:
        """Scale and shift by the parameters."""
        y = scale_and_shift(call.x, call.spec, None, None, call.weight, call.bias, call.mask)
        return finish(y, call.x, call.spec, call.residual, call.mask)
