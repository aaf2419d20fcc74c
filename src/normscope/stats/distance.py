"""How far apart two distributions are.

From moments: `mean_shift`, `std_shift`, and as if both were Gaussian `gaussian_kl`, `symmetric_kl`,
`gaussian_wasserstein2`; arrays for moments per channel. From sketches, free of any shape: `wasserstein1`,
`jensen_shannon`, `psi`, `kolmogorov_smirnov`. Every distance is NaN when one side is empty and otherwise a number from
0 to +∞.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from normscope.stats.cdf import Cdf
from normscope.stats.moments import Moments
from normscope.stats.quantiles import FROM_QUANTILES, Quantiles, area, relative_entropy
from normscope.stats.sketch import Sketch
from normscope.stats.summary import Summary


def gaussian_kl(p: Moments, q: Moments) -> np.ndarray:
    """KL(p ‖ q) in nats of the Gaussians with these means and (biased) variances.

    Where a variance is 0 the limit is taken: 0 for two equal constants, +∞ otherwise. Kullback & Leibler 1951.
    """
    p_var, q_var = np.asarray(p.var), np.asarray(q.var)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = p_var / q_var
        apart = (np.asarray(p.mean) - q.mean) ** 2 / q_var
        kl = np.maximum(0.0, (ratio - 1 - np.log(ratio) + apart) / 2)
    degenerate = (p_var == 0) | (q_var == 0)
    same = (p_var == q_var) & (p.mean == q.mean)
    kl = np.where(degenerate, np.where(same, 0.0, np.inf), kl)
    return np.where((p.count == 0) | (q.count == 0), np.nan, kl)


def symmetric_kl(p: Moments, q: Moments) -> np.ndarray:
    """KL(p ‖ q) + KL(q ‖ p) in nats, of Gaussians; degenerate variances as in `gaussian_kl`. Jeffreys 1946."""
    return gaussian_kl(p, q) + gaussian_kl(q, p)


def gaussian_wasserstein2(p: Moments, q: Moments) -> np.ndarray:
    """√((μ_p − μ_q)² + (σ_p − σ_q)²), the 2-Wasserstein distance of Gaussians. Dowson & Landau 1982."""
    return np.hypot(p.mean - q.mean, p.std - q.std)


def mean_shift(p: Moments, q: Moments) -> np.ndarray:
    """|μ_p − μ_q| / σ_q: how far the mean has moved, in standard deviations of the reference `q`."""
    return _in_deviations(np.abs(p.mean - q.mean), q)


def std_shift(p: Moments, q: Moments) -> np.ndarray:
    """|σ_p − σ_q| / σ_q: by what share the standard deviation has changed from that of the reference `q`."""
    return _in_deviations(np.abs(p.std - q.std), q)


def wasserstein1(p: Sketch, q: Sketch) -> float:
    """∫ |F_p − F_q|, the 1-Wasserstein or earth mover's distance, with each bin's content spread evenly inside it.

    Off by at most the mean bin width of both, about 6 % of the mean magnitudes.
    """
    return _area_between(p.cdf(), q.cdf())


def jensen_shannon(p: Sketch, q: Sketch) -> float:
    """The Jensen–Shannon divergence (not its root) over the bins and exact zeros, in bits, from 0 to 1. Lin 1991."""
    a, b = _shares(p.ordered()), _shares(q.ordered())
    middle = (a + b) / 2
    return float(np.clip((relative_entropy(a, middle) + relative_entropy(b, middle)) / 2, 0.0, 1.0))


def psi(p: Sketch, q: Sketch) -> float:
    """The population stability index Σ (p_i − q_i) ln(p_i / q_i) over the deciles of the reference `q`.

    Deciles are whole groups of bins, so that each holds about a tenth of `q` and counts stay exact; a bin that holds
    more, such as the exact zeros of a ReLU, is a group of its own. Half a count is added to each group (the Jeffreys
    prior), so that an empty one is finite. Few groups keep sampling noise, (groups − 1)·(1/N_p + 1/N_q) on average,
    far below the customary limits 0.1 and 0.25. Siddiqi 2006, "Credit Risk Scorecards", ch. 8; Yurdakul 2018.
    """
    now, reference = p.ordered(), q.ordered()
    if not (now.any() and reference.any()):
        return float("nan")
    centre = np.cumsum(reference) - reference / 2
    decile = np.minimum((10 * centre / reference.sum()).astype(int), 9)
    grouped = np.stack([np.bincount(decile, weights=counts, minlength=10) for counts in (now, reference)])
    grouped = grouped[:, grouped.any(axis=0)] + 0.5
    a, b = grouped / grouped.sum(axis=1, keepdims=True)
    return float(((a - b) * np.log(a / b)).sum())


def kolmogorov_smirnov(p: Sketch, q: Sketch) -> float:
    """The greatest |F_p − F_q| over the borders of the bins; below the true statistic by at most what one bin holds."""
    return float(np.abs(np.cumsum(_shares(p.ordered())) - np.cumsum(_shares(q.ordered()))).max().clip(0, 1))


def _area_between(p: Cdf, q: Cdf) -> float:
    """∫ |F_p − F_q| over the real line, exact for piecewise linear functions with jumps."""
    at = np.unique(np.concatenate((p.edges, q.edges)))
    left = p.upto(at[:-1]) - q.upto(at[:-1])
    right = p.below(at[1:]) - q.below(at[1:])
    return float((area(left, right) * np.diff(at)).sum())


def _summary_wasserstein1(now: Summary, reference: Summary) -> float:
    """`wasserstein1` where the bins are finer than the wider distribution, otherwise the distance of the moments.

    A bin is |μ|/16 wide at the mean, and 2⁻³² next to 0. A sketch sees nothing that is narrower, and √(Δμ² + Δσ²),
    right for distributions of one shape, is then the better figure. Either is kept within
    |Δμ| ≤ W₁ ≤ |Δμ| + σ + σ′, which holds for any two distributions.
    """
    bin_width = max(abs(now.mean) / 16, abs(reference.mean) / 16, 2.0**-32)
    if bin_width <= max(now.std, reference.std) < 2.0**31:
        distance = wasserstein1(now.sketch, reference.sketch)
    else:
        distance = gaussian_wasserstein2(now.moments, reference.moments)
    apart = abs(now.mean - reference.mean)
    return float(np.clip(distance, apart, apart + now.std + reference.std))


def _shift(now: Summary, reference: Summary) -> float:
    """`_summary_wasserstein1` in standard deviations of the reference; +∞ for a move away from a constant."""
    distance, unit = _summary_wasserstein1(now, reference), reference.std
    if unit == 0:
        return 0.0 if distance == 0 else distance * np.inf
    return distance / unit


def _in_deviations(distance: np.ndarray, reference: Moments) -> np.ndarray:
    """`distance` over the deviation of the reference; +∞ for a move away from a constant."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0, np.where(np.isnan(reference.std), np.nan, 0.0), distance / reference.std)


def _shares(counts: np.ndarray) -> np.ndarray:
    total = counts.sum()
    return counts / total if total else np.full(counts.shape, np.nan)


_OF_MOMENTS: Mapping[str, Callable[[Moments, Moments], np.ndarray]] = MappingProxyType(
    {
        "mean_shift": mean_shift,
        "std_shift": std_shift,
        "wasserstein2": gaussian_wasserstein2,
        "symmetric_kl": symmetric_kl,
    }
)


def _whole(distance: Callable[[Moments, Moments], np.ndarray]) -> Callable[[Summary, Summary], float]:
    return lambda now, reference: float(distance(now.moments, reference.moments))


def _of_channels(distance: Callable[[Moments, Moments], np.ndarray]) -> Callable[[Summary, Summary], np.ndarray | None]:
    def of(now: Summary, reference: Summary) -> np.ndarray | None:
        ours, theirs = now.channels, reference.channels
        return distance(ours, theirs) if ours and theirs and ours.mean.shape == theirs.mean.shape else None

    return of


def _of_quantiles(
    distance: Callable[[Quantiles, Quantiles], np.ndarray],
) -> Callable[[Summary, Summary], np.ndarray | None]:
    def of(now: Summary, reference: Summary) -> np.ndarray | None:
        ours, theirs = now.quantiles, reference.quantiles
        return distance(ours, theirs) if ours and theirs and ours.channels == theirs.channels else None

    return of


def _channel_shift(now: Summary, reference: Summary) -> np.ndarray | None:
    distance = PER_CHANNEL["wasserstein1"](now, reference)
    return None if distance is None or not reference.channels else _in_deviations(distance, reference.channels)


PER_CHANNEL: Mapping[str, Callable[[Summary, Summary], np.ndarray | None]] = MappingProxyType(
    {
        "shift": _channel_shift,
        **{name: _of_quantiles(distance) for name, distance in FROM_QUANTILES.items()},
        **{name: _of_channels(distance) for name, distance in _OF_MOMENTS.items()},
    }
)
"""Distance of each channel by name, as a function of (now, reference): (C,), or None where channels are not known.

"shift", "wasserstein1", "jensen_shannon" and "psi" come from `Quantiles` (NaN at channels that were left out), the
others from moments.
"""

DISTANCES: Mapping[str, Callable[[Summary, Summary], float]] = MappingProxyType(
    {
        "shift": _shift,
        "wasserstein1": _summary_wasserstein1,
        **{name: _whole(distance) for name, distance in _OF_MOMENTS.items()},
        "jensen_shannon": lambda now, reference: jensen_shannon(now.sketch, reference.sketch),
        "psi": lambda now, reference: psi(now.sketch, reference.sketch),
        "kolmogorov_smirnov": lambda now, reference: kolmogorov_smirnov(now.sketch, reference.sketch),
    }
)
"""Distance by name, as a function of (now, reference).

"shift" is the 1-Wasserstein distance in units of the reference's standard deviation.
"""
