"""How far a norm's running statistics are from the statistics of the fixed batch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from normscope.stats.moments import Moments
from normscope.watch.measure import Measure, Reading, Scalar, Sight, View


class RunningStatError(Measure):
    """``running_stat_error``: √((running mean − μ)² + (running deviation − σ)²) / σ of the input, mean over channels.

    μ and σ are those of the fixed batch, which stands for the population: an error of one deviation is a channel that
    evaluation mode centres or scales wrongly by as much as the channel varies.
    """

    def __init__(self) -> None:
        self._found: list[Reading] = []

    def see(self, sight: Sight) -> None:
        """Compare at the input of norms that keep a running mean and variance."""
        if (sight.site.role, sight.site.what, sight.mode) != ("norm", "input", "probe"):
            return
        mean, variance = (getattr(sight.module, name, None) for name in ("running_mean", "running_var"))
        channels = sight.summary.channels
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or channels is None:
            return
        if mean.shape == channels.mean.shape:
            errors = error(mean.double().cpu().numpy(), variance.double().cpu().numpy(), channels)
            self._found.append(Scalar(sight.site.at("output"), "running_stat_error", float(np.mean(errors))))

    def tell(self, view: View) -> Iterable[Reading]:
        """One error for each norm with running statistics."""
        found, self._found = self._found, []
        return found


def error(mean: np.ndarray, variance: np.ndarray, channels: Moments) -> np.ndarray:
    """The error of each channel in deviations, (C,); infinite where a constant channel has other running statistics."""
    distance = np.hypot(mean - channels.mean, np.sqrt(variance) - channels.std)
    with np.errstate(divide="ignore"):
        return np.divide(distance, channels.std, out=np.zeros_like(distance), where=distance != 0)
