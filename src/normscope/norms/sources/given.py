"""Statistics that are constants: set by the user, or frozen."""

from __future__ import annotations

import torch
from torch import Tensor

from normscope.kernels import dispatch
from normscope.norms.sources.source import Call, Source
from normscope.terms.errors import DataError
from normscope.terms.spec import NormSpec


class Given(Source):
    """The buffers ``running_mean`` and ``running_var``, which no batch changes."""

    def initial(self, spec: NormSpec, width: int) -> dict[str, Tensor]:
        """Mean 0 and variance 1."""
        return {"running_mean": torch.zeros(width), "running_var": torch.ones(width)}

    def normalize(self, call: Call) -> Tensor:
        """Normalize with the buffers.

        Raises:
            DataError: no buffers were given.
        """
        if not call.state or "running_mean" not in call.state:
            raise DataError(
                "A normalization was asked to use statistics that it was not given.",
                found=f"infer_from={call.spec.infer_from!r}, without running_mean and running_var",
                because="these statistics are kept from earlier batches, and there are none",
                do='pass state={"running_mean": …, "running_var": …}, or describe it with infer_from="batch"',
            )
        mean, var = call.state["running_mean"], call.state["running_var"]
        return dispatch.applied(call.x, call.spec, mean, var, call.weight, call.bias, call.mask, call.residual)
