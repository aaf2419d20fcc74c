"""Whether a norm's running statistics can be used at all, and whether they move.

Ioffe & Szegedy 2015, section 3.1: at inference each channel is divided by its running deviation, which has to be finite
and, for a channel that varies, above zero.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from normscope.watch.measure import Measure, Sight


class RunningStatistics(Measure):
    """Of each norm with a running mean and variance, told at its output.

    - ``running_broken``: the share of channels whose running mean or variance is not finite, or whose variance is zero
      or negative while the channel varies over the fixed batch.
    - ``running_drift``: how far the running statistics have moved since the first probe, √(Δμ² + Δσ²) over the
      channel's deviation on the fixed batch, the mean over the usable channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def see(self, sight: Sight) -> None:
        """Read the buffers when the norm's input passes in training mode."""
        site, channels = sight.site, sight.summary.channels if sight.mode == "probe" else None
        if (site.role, site.what, site.call) != ("norm", "input", 0) or channels is None:
            return
        mean, variance = (getattr(sight.module, name, None) for name in ("running_mean", "running_var"))
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or mean.shape != channels.mean.shape:
            return
        now = mean.double().cpu().numpy().copy(), variance.double().cpu().numpy().copy()
        output = site.at("output")
        self.find(output, "running_broken", broken(*now, channels.std))
        self.find(output, "running_drift", drift(now, self._first.setdefault(site.key, now), channels.std))


def broken(mean: np.ndarray, variance: np.ndarray, deviation: np.ndarray) -> float:
    """The share of channels that evaluation mode cannot use; `deviation` is that of the batch."""
    finite = np.isfinite(mean) & np.isfinite(variance)
    usable = finite & ((variance > 0) | ((variance == 0) & (deviation == 0)))
    return float(np.mean(~usable))


def drift(now: tuple[np.ndarray, np.ndarray], then: tuple[np.ndarray, np.ndarray], deviation: np.ndarray) -> float:
    """The mean distance of two (mean, variance) in deviations, over the channels where both can be told."""
    with np.errstate(invalid="ignore", divide="ignore"):
        far = np.hypot(now[0] - then[0], np.sqrt(now[1]) - np.sqrt(then[1])) / deviation
    known = far[np.isfinite(far)]
    return float(known.mean()) if known.size else float("nan")
