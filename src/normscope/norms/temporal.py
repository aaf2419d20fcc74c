"""Batch normalization of sequences, with statistics of each time step (Cooijmans et al. 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.kernels.reference import Statistics, measure, root, scale_and_shift, wide
from normscope.norms.leaf import Proxy, leaf
from normscope.norms.shapes import expect_floats
from normscope.norms.sources import Call, initial_state, run, teach
from normscope.terms.catalog import CATALOG
from normscope.terms.errors import ShapeError, SpecError
from normscope.terms.spec import Layout


class TemporalBatchNorm(nn.Module):
    """Batch normalization of (T, N, C), each time step by its own statistics, all by one weight and bias.

    Steps past `max_steps` are normalized by their own batch while training and teach nothing; at inference they use
    the statistics of the last step that was kept (Cooijmans et al. 2017).

    Args:
        num_features: C.
        max_steps: how many time steps keep statistics.
        eps: the guard of the division.
        momentum: the weight of the newest batch in the running statistics.
        gain: the starting weight; 0.1 keeps tanh in its linear part.
        bias: whether there is a learned bias.
        batch_first: whether sequences are (N, T, C).
        device: of parameters and buffers.
        dtype: of parameters and buffers.

    Raises:
        SpecError: `max_steps` is below 1.
        ShapeError: at a call, the input is no sequence of C features; while training, a single sequence.
    """

    layout: Layout = "channels_last"  # of its input, for those who look at sites
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        num_features: int,
        max_steps: int = 100,
        eps: float = 1e-5,
        momentum: float = 0.1,
        gain: float = 0.1,
        bias: bool = True,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if max_steps < 1:
            raise SpecError(
                "TemporalBatchNorm was asked to keep the statistics of no time step.",
                found={"max_steps": max_steps},
                because="at inference every step is normalized by kept statistics",
                do="use max_steps ≥ 1, best the length of the training's sequences",
            )
        self.channels, self.max_steps, self.gain, self.batch_first = num_features, max_steps, gain, batch_first
        self._step = CATALOG["BatchNorm"].but(eps=eps, momentum=momentum)
        self._sequence = self._step.but(over="N", layout="channels_last")
        self.weight = nn.Parameter(torch.full((num_features,), gain, device=device, dtype=dtype))
        zeros = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", zeros)
        for name, value in initial_state(self._step, num_features).items():
            kind = dtype if value.is_floating_point() else None
            values = value.to(device=device, dtype=kind).expand(max_steps, *value.shape).clone()
            self.register_buffer(name, values, persistent=name != "num_batches_skipped")

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalized sequence; mask (T, N), or (N, T) with `batch_first`, True where counted; or lengths (N,)."""
        if isinstance(input, Proxy):
            return leaf(self, input, mask)
        expect_floats(self, input)
        if input.ndim != 3 or input.shape[-1] != self.channels:
            raise ShapeError(
                "TemporalBatchNorm was given an input that is no sequence of its features.",
                found={"input": tuple(input.shape), "features": self.channels},
                because="it normalizes each time step of (T, N, C)",
                do=f"pass ({'N, T' if self.batch_first else 'T, N'}, {self.channels})",
            )
        if isinstance(mask, Tensor) and mask.ndim != 1 and mask.shape != input.shape[:2]:
            raise ShapeError(
                "TemporalBatchNorm was given a mask that does not fit its input.",
                found={"mask": tuple(mask.shape), "input": tuple(input.shape), "batch_first": self.batch_first},
                because="a mask says of every step of every sequence whether it counts",
                do=f"pass a boolean mask of shape {tuple(input.shape[:2])}, or the lengths of the sequences",
            )
        if not self.batch_first:
            input = input.transpose(0, 1)
            mask = mask.transpose(0, 1) if isinstance(mask, Tensor) and mask.ndim == 2 else mask
        self._check_batch(input)
        used = self._of_batch(input, mask) if self.training else self._of_past(input.shape[1])
        sigma = root(used.var, self._sequence)
        y = scale_and_shift(input, self._sequence, used.mean, sigma, self.weight, self.bias, mask)
        return y if self.batch_first else y.transpose(0, 1)

    def at(self, input: Tensor, step: int, mask: Tensor | None = None) -> Tensor:
        """One time step, (N, C), by itself; mask (N,)."""
        self._check_batch(input)
        if self.training and step >= self.max_steps:
            spec = self._step.but(infer_from="batch")
            return run(Call(input, spec, self.weight, self.bias, None, mask), True)
        state = {name: buffer[min(step, self.max_steps - 1)] for name, buffer in self.named_buffers()}
        return run(Call(input, self._step, self.weight, self.bias, state, mask), self.training)

    @property
    def eps(self) -> float:
        """The guard of the division."""
        return self._step.eps or 0.0

    def learn(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Let the kept statistics learn from measured ones of the first steps, (T, C) each, of `count` sequences."""
        steps = min(len(mean), self.max_steps)
        mean, var = mean[:steps], var[:steps]
        if torch.isfinite(mean + var).all():
            self._teach(steps, Statistics(mean[None, ..., None], var[None, ..., None], count))
        else:  # what came before is learned
            for step in range(steps):
                state = {name: buffer[step] for name, buffer in self.named_buffers()}
                teach(state, self._step, Statistics(mean[step][None, :, None], var[step][None, :, None], count))

    def kept(self, steps: int) -> tuple[Tensor, Tensor]:
        """The means and variances that the first steps use at inference, (T, C) each."""
        at = torch.arange(steps, device=self.weight.device).clamp(max=self.max_steps - 1)
        mean, var = (wide(self.get_buffer(name))[at] for name in ("running_mean", "running_var"))
        return mean, var

    def _check_batch(self, input: Tensor) -> None:
        if self.training and len(input) == 1:
            raise ShapeError(
                "TemporalBatchNorm was given a single sequence to train on.",
                found={"input": tuple(input.shape), "training": True},
                because="each time step takes its statistics over the batch, and one number shows no spread",
                do='train on two sequences or more, or use norm="layer"',
            )

    def _of_batch(self, input: Tensor, mask: Tensor | None) -> Statistics:
        seen = measure(input, self._sequence, mask)
        steps = min(input.shape[1], self.max_steps)
        size = seen.size if isinstance(seen.size, int) else seen.size[:, :steps]
        self._teach(steps, Statistics(seen.mean[:, :steps], seen.var[:, :steps], size))
        return seen

    def _of_past(self, steps: int) -> Statistics:
        mean, var = self.kept(steps)
        return Statistics(mean[None, ..., None], var[None, ..., None], 0)

    def _teach(self, steps: int, seen: Statistics) -> None:
        state = {name: buffer[:steps] for name, buffer in self.named_buffers()}
        flat = {name: state[name].view(-1) for name in ("running_mean", "running_var")}
        teach({**state, **flat}, self._sequence, seen)

    def extra_repr(self) -> str:
        """The features and the time limit."""
        return f"{self.channels}, max_steps={self.max_steps}, batch_first={self.batch_first}"
