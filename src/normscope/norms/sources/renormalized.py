"""Batch statistics corrected towards the running ones (Ioffe 2017, "Batch Renormalization", algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from normscope.kernels.cells import cells
from normscope.kernels.reference import Statistics, finish, measure, root, scale_and_shift
from normscope.norms import past
from normscope.norms.sources.snapshot import snapshot
from normscope.norms.sources.source import Call, Source

CORRECTIONS = ((3.0, 5_000, 40_000), (5.0, 5_000, 25_000))  # Ioffe 2017


class Renormalized(Source):
    """``x̂ = (x − μ_B)/σ_B · r + d`` with ``r = clip(σ_B/σ)`` and ``d = clip((μ_B − μ)/σ)``, both outside the gradient.

    μ and σ are the running statistics before this batch: averages of the batches' means and (biased) deviations, of
    which ``running_var`` holds σ² − ε. The bounds of r and d grow from none (batch normalization)
    to `spec.corrections` with the number of batches seen, and never past them.
    """

    def normalize(self, call: Call) -> Tensor:
        """Normalize with the corrected statistics."""
        return self.measure(call)[0]

    def measure(self, call: Call) -> tuple[Tensor, tuple[Statistics, ...]]:
        """Normalize with the corrected statistics; the batch's own are what running statistics learn from."""
        seen = measure(call.x, call.spec, call.mask)
        with torch.no_grad():
            r, d = self.corrections(call, seen.mean, root(seen.var, call.spec))
        y = self.corrected(call, seen, r, d)
        if call.state:
            past.keep(call.state["running_mean"], (seen.mean, seen.var), (r, d), y)
        return y, (Statistics(seen.mean.detach(), seen.var.detach(), seen.size),)

    def repeat(self, call: Call) -> Tensor:
        """Normalize with the corrections of the first run."""
        seen = measure(call.x, call.spec, call.mask)
        return self.corrected(call, seen, *past.again(call.kept("running_mean"), (seen.mean, seen.var)))

    def corrected(self, call: Call, seen: Statistics, r: Tensor, d: Tensor) -> Tensor:
        """``(x − μ_B)/σ_B · r + d``, written as one shift and one division."""
        sigma = root(seen.var, call.spec)
        y = scale_and_shift(call.x, call.spec, seen.mean - sigma * d / r, sigma / r, call.weight, call.bias, call.mask)
        return finish(y, call.x, call.spec, call.residual, call.mask)

    def corrections(self, call: Call, mean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The factor r and the shift d for this batch."""
        state: Mapping[str, Tensor] = call.state or {}
        if "running_mean" not in state:
            return torch.ones_like(sigma), torch.zeros_like(mean)
        view = cells(call.x, call.spec)
        running_mean = view.along_channels(snapshot(state["running_mean"])).to(mean.dtype)
        running_sigma = root(view.along_channels(snapshot(state["running_var"])).to(sigma.dtype), call.spec)
        of_r, of_d = call.spec.corrections or CORRECTIONS
        step = snapshot(state["num_batches_tracked"])
        r_max = 1 + _grown(of_r, step) * (of_r[0] - 1)
        d_max = _grown(of_d, step) * of_d[0]
        r = (sigma / running_sigma).clamp(1 / r_max, r_max)
        d = ((mean - running_mean) / running_sigma).clamp(-d_max, d_max)
        return r.to(sigma.dtype), d.to(mean.dtype)


def _grown(bound: tuple[float, int, int], step: Tensor) -> Tensor:
    """How far the bound has grown at `step`: from 0 at its first step to 1 at its last, and 1 ever after."""
    _, first, last = bound
    return ((step - first) / max(last - first, 1)).clamp(0, 1)
