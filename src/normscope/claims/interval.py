"""Effects with their intervals: paired t, bootstrap, and the bare number of an exact result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from normscope.terms.verdict import Effect
from normscope.treat.interval import mean_interval

CONFIDENCE = 0.95
DRAWS = 10_000


def exact(value: float, unit: str = "") -> Effect:
    """A number without sampling error."""
    return Effect(value, value, value, 1.0, unit, "exact")


def paired(differences: Sequence[float], unit: str = "") -> Effect:
    """The mean of differences of paired runs, with Student's t interval."""
    value, low, high = mean_interval(list(differences), CONFIDENCE)
    return Effect(value, low, high, CONFIDENCE, unit, f"paired t, {len(differences)} seeds")


def bootstrap(
    values: Sequence[float], statistic: Callable[..., np.ndarray] = np.median, unit: str = "", draws: int = DRAWS
) -> Effect:
    """A `statistic` (numpy's, with ``axis``) of `values` with the percentile interval of its bootstrap.

    The generator is fixed: the same values give the same interval. Fewer than two values, or a value that is not
    finite, bound nothing.
    """
    sample = np.asarray(values, dtype=np.float64)
    value = float(statistic(sample, axis=0)) if len(sample) else math.nan
    if len(sample) < 2 or not np.isfinite(sample).all():
        return Effect(value, -math.inf, math.inf, CONFIDENCE, unit, "bootstrap")
    chosen = np.random.default_rng(0).integers(len(sample), size=(draws, len(sample)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(statistic(sample[chosen], axis=1), (tail, 1 - tail))
    return Effect(value, float(low), float(high), CONFIDENCE, unit, f"bootstrap of {len(sample)} runs")
