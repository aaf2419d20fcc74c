"""What the choice of the batch adds to a norm's statistics, and whether it is more than chance would add.

Ioffe & Szegedy 2015, section 3.1, let each batch stand for the population; Wu & He 2018, section 1, count what small
batches cost. Batches that are not drawn independently (sorted, one class each, one video each) are noisier still:
Ioffe 2017, "Batch Renormalization", section 4.3.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from normscope.watch.measure import Measure, Sight


class Batch(NamedTuple):
    """What a batch says of each channel: the means of its samples (N, C), and mean and variance of all cells (C,)."""

    samples: Tensor
    mean: Tensor
    variance: Tensor


class BatchNoise(Measure):
    """The training batch of the step against the fixed batch, at the same parameters.

    Told at each norm over the batch, of what it reads, and of the whole model, of the data themselves.

    - ``batch_stat_noise``: the standard deviation of a batch's mean from batch to batch, in standard deviations of
      the channel, the root mean square over channels, estimated from the two batches.
    - ``batch_stat_excess``: the square of their distance over what independent samples would give,
      s²·(1/N + 1/N′) with s² the variance of the samples' means within the batches. One probe scatters around 1 by
      about √(2/C); a level well above 1 over many probes means that the batches are not independent samples.
    """

    compares_batches: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._fixed: dict[str, Batch] = {}

    def see(self, sight: Sight) -> None:
        """Keep the fixed batch's side, and compare when the training batch passes."""
        site = sight.site
        spec = site.spec
        over_batch = site.role == "norm" and spec is not None and "N" in spec.over
        if site.what != "input" or not (over_batch or (site.path, site.role) == ("", "other")):
            return
        batch = batch_of(sight.tensor, site.channel_axis) if sight.mode in ("probe", "batch") else None
        if batch is None:
            return
        if sight.mode == "probe":
            self._fixed[site.key] = batch
        elif (other := self._fixed.get(site.key)) is not None and other.mean.shape == batch.mean.shape:
            noise, excess = compared(batch, other)
            for quantity, value in (("batch_stat_noise", noise), ("batch_stat_excess", excess)):
                if value is not None:
                    self.find(site.at("output"), quantity, value)


def batch_of(tensor: Tensor, channel_axis: int | None) -> Batch | None:
    """The batch in `tensor`, samples along axis 0; None where there are not two samples, or no channels beside them."""
    if channel_axis is None or tensor.ndim < 2 or tensor.shape[0] < 2 or channel_axis % tensor.ndim == 0:
        return None
    cells = tensor.detach().movedim(channel_axis, -1).flatten(1, -2) if tensor.ndim > 2 else tensor.detach()[:, None]
    samples = cells.mean(1, dtype=torch.float64)
    mean = samples.mean(0)
    variance = (cells - mean.to(cells.dtype)).square().mean((0, 1), dtype=torch.float64)
    return Batch(samples, mean, variance)


def compared(now: Batch, fixed: Batch) -> tuple[float | None, float | None]:
    """Noise and excess; None for what has no variance to be measured by."""
    ours, theirs = len(now.samples), len(fixed.samples)
    apart = (now.mean - fixed.mean).square()
    within = sum((batch.samples - batch.mean).square().sum(0) for batch in (now, fixed)) / (ours + theirs - 2)
    chance = torch.as_tensor(within * (1 / ours + 1 / theirs)).mean()
    # Of the squared distance, a share of (1/N) / (1/N + 1/N′) is the training batch's own, if it falls with N.
    own = apart * theirs / (ours + theirs)
    spread = (ours * now.variance + theirs * fixed.variance) / (ours + theirs)
    varied = spread > 0
    noise = float((own[varied] / spread[varied]).mean().sqrt()) if bool(varied.any()) else None
    return noise, float(apart.mean() / chance) if float(chance) > 0 else None
