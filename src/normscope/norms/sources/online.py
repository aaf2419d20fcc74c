"""Statistics of a stream, one sample at a time (Chiley et al. 2019, "Online Normalization").

Sample t is normalized by what was known before it; the gradient through the statistics, which would reach back for
ever, is replaced by a control process that keeps it orthogonal to 1 and to the output in the long run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from normscope.kernels.cells import Cells, cells, counted
from normscope.kernels.reference import Statistics, finish, measure, root, scale_and_shift, wide
from normscope.norms import past
from normscope.norms.sources.given import Given
from normscope.norms.sources.snapshot import snapshot
from normscope.norms.sources.source import Call
from normscope.terms.errors import DataError
from normscope.terms.spec import NormSpec

DECAY = (0.999, 0.99)  # α_f and α_b, Chiley et al. 2019


class Online(Given):
    """``y_t = (x_t − μ_{t−1}) / σ_{t−1}``; at inference, the last μ and σ of the stream.

    Buffers: the stream's mean and variance, and the two errors that the control of the gradient has accumulated.
    """

    learns = True

    def initial(self, spec: NormSpec, width: int) -> dict[str, Tensor]:
        """Mean 0, variance 1, no error accumulated."""
        return {
            **super().initial(spec, width),
            "control_output": torch.zeros(width),
            "control_ones": torch.zeros(width),
            "num_batches_skipped": torch.tensor(0),
        }

    def measure(self, call: Call) -> tuple[Tensor, tuple[Statistics, ...]]:
        """Normalize each sample by the stream before it, and move the stream past the batch."""
        if not call.state:
            raise DataError(
                "Online normalization was asked to train without its buffers.",
                found="state=None, or empty",
                because="its statistics are a stream, which goes on from call to call",
                do="pass the buffers of one layer as `state`, the same ones at every call",
            )
        own = self.of_samples(call)
        before = tuple(snapshot(call.state[name]) for name in ("running_mean", "running_var"))
        y = self.streamed(call, own, before, learns=True)
        past.keep(call.state["running_mean"], own, before, y)
        return y, ()

    def repeat(self, call: Call) -> Tensor:
        """Normalize by the stream as it was before the batch the first time."""
        own = self.of_samples(call)
        return self.streamed(call, own, past.again(call.kept("running_mean"), own), learns=False)

    def of_samples(self, call: Call) -> tuple[Tensor, Tensor]:
        """The mean and the variance of each sample by itself, (N, C); of a sample without counted cells, 0."""
        with torch.no_grad():
            own = measure(call.x, call.spec.but(over="S"), call.mask)
            return own.mean.flatten(1), own.var.flatten(1)

    def streamed(self, call: Call, own: tuple[Tensor, Tensor], before: tuple[Tensor, ...], learns: bool) -> Tensor:
        """The output, from the stream as it was `before`; a sample without counted cells is none of the stream."""
        mask = None if call.mask is None else counted(call.x, call.spec, call.mask)
        y = _Stream.apply(call.x, call.spec, dict(call.state or {}), own, before, learns, mask)
        y = scale_and_shift(y, call.spec, None, None, call.weight, call.bias, mask)
        return finish(y, call.x, call.spec, call.residual, mask)


class _Stream(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, spec: NormSpec, state: dict[str, Tensor], own: Any, before: Any, learns: bool, mask: Any
    ) -> Tensor:
        decay = (spec.decay or DECAY)[0]
        view = cells(x, spec)
        mean, var = own
        kept_mean, kept_var = (value.to(mean.dtype) for value in before)
        there = None if mask is None else mask.flatten(1).any(1)
        means = _recur(kept_mean, (1 - decay) * mean, decay, there)
        steps = (1 - decay) * var + decay * (1 - decay) * (mean - means[:-1]).square()
        variances = _recur(kept_var, steps, decay, there)
        sigma = _along(root(variances[:-1], spec), view)
        data = view.split(wide(x))
        y = (data - _along(means[:-1], view)) / sigma
        where = None if mask is None else view.along_positions(mask)
        ctx.view, ctx.spec, ctx.state, ctx.dtype = view, spec, state, x.dtype
        ctx.save_for_backward(y if where is None else torch.where(where, y, 0.0), sigma, where)
        if learns:
            finite = (means[-1] + variances[-1]).isfinite().all()
            for name, value in (("running_mean", means[-1]), ("running_var", variances[-1])):
                state[name].copy_(torch.where(finite, value, state[name]))
            state["num_batches_skipped"].add_(~finite)
        return view.join(y if where is None else torch.where(where, y, data)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        y, sigma, where = ctx.saved_tensors
        view, state = ctx.view, ctx.state
        decay = (ctx.spec.decay or DECAY)[1]
        given = view.split(wide(grads[0]))
        grad = given if where is None else torch.where(where, given, 0.0)
        positions = tuple(dim for dim in view.dims if dim != 0)
        others = tuple(range(1, view.rank))
        share = 1.0 if where is None else where / where.sum(others, keepdim=True).clamp(min=1).to(y.dtype)
        there = None if where is None else where.flatten(1).any(1)

        def mean(values: Tensor) -> Tensor:
            if where is not None:
                values = values * share
                return (values.sum(positions) if positions else values).flatten(1)
            return (values.mean(positions) if positions else values).flatten(1)

        # ε_y after each sample: ε_t = ε_{t−1} + mean((g_t − (1 − α) ε_{t−1} y_t) · y_t)
        along_output, power = mean(grad * y), mean(y.square())
        errors = [state["control_output"].to(y.dtype)]
        for step, size in zip(along_output, power, strict=True):
            errors.append(errors[-1] + step - (1 - decay) * errors[-1] * size)
        grad = (grad - (1 - decay) * _along(torch.stack(errors[:-1]), view) * y) / sigma
        ones = _recur(state["control_ones"].to(y.dtype), mean(grad), decay, there)
        grad = grad - (1 - decay) * _along(ones[:-1], view)
        finite = (errors[-1] + ones[-1]).isfinite().all()
        for name, value in (("control_output", errors[-1]), ("control_ones", ones[-1])):
            state[name].copy_(torch.where(finite, value, state[name]))
        grad = grad if where is None else torch.where(where, grad, given)
        return view.join(grad).to(ctx.dtype), *(None,) * 6


def _along(values: Tensor, view: Cells) -> Tensor:
    """(N, C) values, shaped to meet the split tensor."""
    shape = [1] * view.rank
    shape[0], shape[view.axis] = values.shape
    return values.reshape(shape)


def _recur(start: Tensor, steps: Tensor, decay: float, there: Tensor | None = None) -> Tensor:
    """All of ``s_t = decay · s_{t−1} + steps_t`` from s_0 = `start` (C,): (N + 1, C), without a loop over N.

    Where `there` (N,) is False, ``s_t = s_{t−1}``.
    """
    time = torch.arange(len(steps) + 1, device=steps.device)
    late = time[:, None] >= time[None, :]
    if there is not None:
        steps = steps * there[:, None]
        time = torch.cat([time[:1], there.cumsum(0)])
    age = (time[:, None] - time[None, :]).clamp(min=0)
    weights = torch.where(late, torch.tensor(decay, dtype=steps.dtype, device=steps.device) ** age, 0)
    return weights @ torch.cat([start[None], steps])
