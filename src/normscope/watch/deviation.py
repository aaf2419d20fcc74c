"""How far apart two summaries of one place are, channel by channel, in standard deviations."""

from __future__ import annotations

import numpy as np

from normscope.stats.distance import gaussian_wasserstein2
from normscope.stats.summary import Summary


def deviation(reference: Summary, other: Summary) -> float:
    """The root of the mean square over channels of √((μ−μ')² + (σ−σ')²), over that of the reference's deviations.

    Per channel the 2-Wasserstein distance of Gaussians. 0 where both are alike, +∞ for a move away from constants, NaN
    where one has no finite values.
    """
    ours, theirs = (summary.moments if summary.channels is None else summary.channels for summary in (reference, other))
    if ours.mean.shape != theirs.mean.shape:
        ours, theirs = ours.pooled(), theirs.pooled()
    distance = np.mean(gaussian_wasserstein2(ours, theirs) ** 2)
    if distance == 0:
        return 0.0
    variance = np.mean(ours.var)
    return float(np.sqrt(distance / variance)) if variance > 0 else float("inf")
