"""`Quantiles`: the distribution of each channel, as the values at fixed levels; and how far apart two of them are.

A sketch of every channel would take a hundred times as much as one of the tensor. Fifteen order statistics a channel
take 60 bytes, and between them a distribution is spread evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from normscope.stats.monoid import Arrays, Monoid
from normscope.terms.datum import Datum

LEVELS = np.array([0, 0.01, 0.05, *(np.arange(1, 10) / 10), 0.95, 0.99, 1])
"""The shares below which the values lie: the deciles that PSI counts by, and the tails."""

CHANNELS = 512
"""Of more channels so many, evenly: 30 kB a tensor."""


@dataclass(frozen=True, repr=False, eq=False)
class Quantiles(Monoid, Datum):
    """What each channel's values are at `LEVELS`, in one or more parts that were merged.

    Attributes:
        count: of each part, how many values a channel has: float64 (P,).
        values: float32 (P, levels, channels that were kept), NaN for a channel with a value that is not finite.
        channels: how many there are; of more than `CHANNELS` every k-th is kept, beginning with the first.
    """

    count: np.ndarray
    values: np.ndarray
    channels: int

    @classmethod
    def of(cls, rows: Any) -> Quantiles:
        """Of the columns of an array (N, C) with at least one row."""
        rows = np.asarray(rows, dtype=np.float32)
        ordered = np.sort(np.ascontiguousarray(rows[:, :: _stride(rows.shape[1])].T), axis=1)
        place = LEVELS * (len(rows) - 1)
        lower = np.floor(place).astype(int)
        with np.errstate(invalid="ignore", over="ignore"):
            below, above = ordered[:, lower], ordered[:, np.ceil(place).astype(int)]
            values = below + (place - lower).astype(np.float32) * (above - below)
            values[~np.isfinite(ordered[:, [0, -1]]).all(1)] = np.nan  # NaN is sorted to the end
        return cls(np.array([len(rows)], np.float64), np.ascontiguousarray(values.T)[None], rows.shape[1])

    def merge(self, other: Quantiles) -> Quantiles:
        """Both, each part weighing as much as it has values."""
        return Quantiles(
            np.concatenate((self.count, other.count)),
            np.concatenate((self.values, other.values)),
            self.channels,
        )

    def to_arrays(self) -> Arrays:
        """The three attributes."""
        return {"count": self.count, "values": self.values, "channels": np.array(self.channels, dtype=np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Quantiles:
        """The inverse of `to_arrays`. Raises ValueError when they do not fit together."""
        told = cls(arrays["count"], arrays["values"], int(arrays["channels"]))
        kept = len(range(0, told.channels, _stride(told.channels)))
        if told.values.shape != (len(told.count), len(LEVELS), kept):
            raise ValueError(f"quantiles of {told.channels} channels have the shape {told.values.shape}")
        return told

    def below(self, x: np.ndarray) -> np.ndarray:
        """The share of each channel strictly below `x` (G, channels that were kept)."""
        return self._share(x, np.less)

    def upto(self, x: np.ndarray) -> np.ndarray:
        """The share of each channel at or below `x` (G, channels that were kept)."""
        return self._share(x, np.less_equal)

    def _share(self, x: np.ndarray, lies: Callable[..., np.ndarray]) -> np.ndarray:
        total = np.zeros(x.shape)
        for count, values in zip(self.count, self.values.astype(np.float64)):
            last = lies(values[None], x[:, None]).sum(1) - 1  # of the levels whose value lies so
            at = last.clip(0, len(LEVELS) - 2)
            start, end = (np.take_along_axis(values, place, 0) for place in (at, at + 1))
            with np.errstate(divide="ignore", invalid="ignore"):
                inside = LEVELS[at] + (x - start) / (end - start) * (LEVELS[at + 1] - LEVELS[at])
            total += count * np.where(last < 0, 0.0, np.where(last > len(LEVELS) - 2, 1.0, inside))
        return total / self.count.sum()


def wasserstein1(now: Quantiles, reference: Quantiles) -> np.ndarray:
    """∫ |F − F'| of each channel (C,), as `distance.wasserstein1` of the whole; exact between the levels' values."""
    at = _union(now, reference)
    left = now.upto(at[:-1]) - reference.upto(at[:-1])
    right = now.below(at[1:]) - reference.below(at[1:])
    return _spread((area(left, right) * np.diff(at, axis=0)).sum(0), now, reference)


def jensen_shannon(now: Quantiles, reference: Quantiles) -> np.ndarray:
    """The Jensen–Shannon divergence of each channel in bits (C,), of densities even between levels. Lin 1991."""
    a, b = _cells(now, reference)
    middle = (a + b) / 2
    found = (relative_entropy(a, middle) + relative_entropy(b, middle)) / 2
    return _spread(found.clip(0.0, 1.0), now, reference)


def psi(now: Quantiles, reference: Quantiles) -> np.ndarray:
    """The population stability index of each channel (C,), by the deciles of `reference` as `distance.psi`."""
    a, b = _cells(now, reference)
    counts = np.stack((a * now.count.sum(), b * reference.count.sum()))
    decile = np.minimum((10 * (np.cumsum(b, axis=0) - b / 2)).astype(int), 9)
    groups = np.stack([(counts * (decile == number)).sum(1) for number in range(10)], 1)  # (2, 10, C)
    there = groups.any(0)
    groups = np.where(there, groups + 0.5, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = groups / groups.sum(1, keepdims=True)
        total = np.where(there, (shares[0] - shares[1]) * np.log(shares[0] / shares[1]), 0.0).sum(0)
    return _spread(total, now, reference)


def area(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """∫₀¹ |left + (right − left) t| dt."""
    size = np.abs(left) + np.abs(right)
    crossing = left * right < 0
    return np.where(crossing, (left**2 + right**2) / np.where(crossing, size, 1.0), size) / 2


def relative_entropy(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Σ a log₂(a / b) along the first axis, in bits; 0 log 0 is 0."""
    ratio = np.divide(a, b, out=np.ones_like(a), where=~(a == 0))
    return (a * np.log2(ratio)).sum(0)


def _union(now: Quantiles, reference: Quantiles) -> np.ndarray:
    """Every value of both, ascending, (G, channels that were kept)."""
    parts = [part.values.reshape(-1, part.values.shape[-1]) for part in (now, reference)]
    return np.sort(np.concatenate(parts).astype(np.float64), axis=0)


def _cells(now: Quantiles, reference: Quantiles) -> tuple[np.ndarray, np.ndarray]:
    """The shares of both in each value of either and in each gap between two, (2 G − 1, channels that were kept)."""
    at = _union(now, reference)
    apart = np.diff(at, axis=0) > 0
    first = np.concatenate((np.ones_like(at[:1], dtype=bool), apart))  # of values that are equal
    found = []
    for part in (now, reference):
        below, upto = part.below(at), part.upto(at)
        cells = np.empty((2 * len(at) - 1, at.shape[1]))
        cells[::2] = np.where(first, upto - below, 0.0)
        cells[1::2] = np.where(apart, below[1:] - upto[:-1], 0.0)
        found.append(cells.clip(0.0, 1.0))
    return found[0], found[1]


def _spread(values: np.ndarray, now: Quantiles, reference: Quantiles) -> np.ndarray:
    """`values` at their channels; NaN at those that were not kept, or of which one side is not finite."""
    told = np.full(now.channels, np.nan)
    known = ~(np.isnan(now.values).any((0, 1)) | np.isnan(reference.values).any((0, 1)))
    told[:: _stride(now.channels)] = np.where(known, values, np.nan)
    return told


def _stride(channels: int) -> int:
    return max(1, -(-channels // CHANNELS))


FROM_QUANTILES: Mapping[str, Callable[[Quantiles, Quantiles], np.ndarray]] = MappingProxyType(
    {"wasserstein1": wasserstein1, "jensen_shannon": jensen_shannon, "psi": psi}
)
"""Distances between the quantiles of each channel, as functions of (now, reference)."""
