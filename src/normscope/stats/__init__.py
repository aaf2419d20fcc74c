"""Statistics that merge: moments, sketches and summaries of tensors, and the distances between them.

Nothing here loads torch before a tensor is measured, so that reading a record stays quick.
"""

from normscope.stats.batch import summarize
from normscope.stats.cdf import Cdf
from normscope.stats.distance import (
    DISTANCES,
    PER_CHANNEL,
    gaussian_kl,
    gaussian_wasserstein2,
    jensen_shannon,
    kolmogorov_smirnov,
    mean_shift,
    psi,
    std_shift,
    symmetric_kl,
    wasserstein1,
)
from normscope.stats.moments import Moments
from normscope.stats.quantiles import Quantiles
from normscope.stats.sample import strided
from normscope.stats.sketch import Sketch
from normscope.stats.summary import Summary

__all__ = [
    "DISTANCES",
    "PER_CHANNEL",
    "Cdf",
    "Moments",
    "Quantiles",
    "Sketch",
    "Summary",
    "gaussian_kl",
    "gaussian_wasserstein2",
    "jensen_shannon",
    "kolmogorov_smirnov",
    "mean_shift",
    "psi",
    "std_shift",
    "strided",
    "summarize",
    "symmetric_kl",
    "wasserstein1",
]
