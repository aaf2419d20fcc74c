"""How far a norm's running statistics are from the statistics of the fixed batch."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from normscope.stats.distance import symmetric_kl
from normscope.stats.moments import Moments
from normscope.watch.measure import Measure, Sight


class RunningStatError(Measure):
    """``running_stat_error``: √((running mean − μ)² + (running deviation − σ)²) / σ of the input, mean over channels.

    μ and σ are those of the fixed batch, which stands for the population: an error of one deviation is a channel that
    evaluation mode centres or scales wrongly by as much as the channel varies. ``running_stat_kl``: the symmetric KL
    divergence of the two as Gaussians, in nats, mean over channels (`stats.distance.symmetric_kl`).
    """

    def see(self, sight: Sight) -> None:
        """Compare at the input of norms that keep a running mean and variance."""
        if (sight.site.role, sight.site.what, sight.mode) != ("norm", "input", "probe"):
            return
        mean, variance = (getattr(sight.module, name, None) for name in ("running_mean", "running_var"))
        channels = sight.summary.channels
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or channels is None:
            return
        if mean.shape != channels.mean.shape:
            return
        centre, spread = (statistic.double().cpu().numpy() for statistic in (mean, variance))
        site, running = sight.site.at("output"), Moments(channels.count, centre, spread * channels.count)
        self.find(site, "running_stat_error", float(np.mean(error(centre, spread, channels))))
        self.find(site, "running_stat_kl", float(np.mean(symmetric_kl(running, channels))))


def error(mean: np.ndarray, variance: np.ndarray, channels: Moments) -> np.ndarray:
    """The error of each channel in deviations, (C,); infinite where a constant channel has other running statistics."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a running variance below zero has no root
        distance = np.hypot(mean - channels.mean, np.sqrt(variance) - channels.std)
        return np.divide(distance, channels.std, out=np.zeros_like(distance), where=distance != 0)
