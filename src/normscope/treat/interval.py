"""The mean of paired differences with its interval: Student's t, in plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean of `values` with the interval that holds the true mean at `confidence`: (mean, low, high).

    Student's t with one degree of freedom less than there are values. One value, or a value that is not finite,
    bounds nothing: the interval is then the whole line.
    """
    count = len(values)
    mean = math.fsum(values) / count if count else math.nan
    if count < 2 or not math.isfinite(mean):
        return mean, -math.inf, math.inf
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    reach = student_t((1 + confidence) / 2, count - 1) * math.sqrt(variance / count)
    return mean, mean - reach, mean + reach


def student_t(probability: float, freedom: int) -> float:
    """The quantile of Student's t: P(T ≤ t) = `probability`, for a whole number of degrees of `freedom` ≥ 1.

    Bisection on the finite series of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4, to the last bits of t.
    """
    if probability == 0.5:
        return 0.0
    if probability < 0.5:
        return -student_t(1 - probability, freedom)
    low, high = 0.0, 1.0
    while _within(high, freedom) < 2 * probability - 1:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| ≤ t): with θ = atan(t/√ν), a sum of powers of cos θ."""
    theta = math.atan2(t, math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= math.cos(theta) ** 2 * (power + 1) / (power + 2)
    share = math.sin(theta) * total
    return 2 / math.pi * (theta + share) if odd else share
