"""Statistics over virtual batches (Hoffer, Hubara, Soudry 2017, "Train longer, generalize better", algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from normscope.kernels import dispatch
from normscope.kernels.reference import Statistics
from normscope.norms.sources.source import Call, Source


class Ghost(Source):
    """The batch is cut into virtual batches of `spec.virtual_batch` samples, each with statistics of its own.

    The last may be smaller. Running statistics learn from each in turn, as from so many batches.
    """

    def normalize(self, call: Call) -> Tensor:
        """Normalize each virtual batch by itself."""
        return self.measure(call)[0]

    def measure(self, call: Call) -> tuple[Tensor, tuple[Statistics, ...]]:
        """Normalize each virtual batch by itself; one statistic each."""
        size = call.spec.virtual_batch or len(call.x)
        parts = call.x.split(size)
        masks, residuals = (
            [None] * len(parts) if value is None else value.split(size) for value in (call.mask, call.residual)
        )
        done = [
            dispatch.measured(part, call.spec, call.weight, call.bias, mask, residual)
            for part, mask, residual in zip(parts, masks, residuals, strict=True)
        ]
        return torch.cat([y for y, _ in done]), tuple(seen for _, seen in done)
