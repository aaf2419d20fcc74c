"""What is kept of one tensor at one step: its moments, its sketch, its range, and moments per channel on demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from normscope.stats.cdf import Cdf
from normscope.stats.moments import Moments, by_channel
from normscope.stats.monoid import Arrays, Monoid, prefixed, unprefixed
from normscope.stats.quantiles import Quantiles
from normscope.stats.rows import Tell, measured
from normscope.stats.sketch import Sketch
from normscope.stats.values import block_size, values
from normscope.terms.datum import Datum


@dataclass(frozen=True, repr=False, eq=False)
class Summary(Monoid, Datum):
    """Moments and sketch of one tensor, or of a sample of it.

    low, high: the least and the greatest finite value seen (NaN when none was). size: the number of elements of the
    tensor it stands for, at least the number seen. channels: moments per channel, None where they were not taken.
    quantiles: the distribution of each channel, likewise.
    """

    moments: Moments
    sketch: Sketch
    low: float
    high: float
    size: int
    channels: Moments | None = None
    quantiles: Quantiles | None = None

    @classmethod
    def empty(cls) -> Summary:
        """The summary of nothing: the identity of `merge`."""
        return cls(Moments.empty(), Sketch.empty(), nan, nan, 0)

    @classmethod
    def of(cls, x: Any, channel_axis: int | None = None, tell: Tell | None = None) -> Summary:
        """The summary of every element of a tensor or array; with moments per channel when `channel_axis` is given.

        tell: a faster way, see `rows.measured`.
        """
        tensor = values(x)
        channels = None if channel_axis is None else Moments.of(tensor, channel_axis)
        flat, width = by_channel(tensor, None, keep_order=False).view(-1), block_size(tensor.device)
        whole = flat.numel() - flat.numel() % width
        rows = measured((flat[:whole].view(-1, width), flat[whole:].view(1, -1)), tell)
        return cls(
            rows.moments.pooled(),
            Sketch.from_tally(rows.tally.sum(0)),
            float(np.fmin.reduce(rows.low)),
            float(np.fmax.reduce(rows.high)),
            tensor.numel(),
            channels,
        )

    def merge(self, other: Summary) -> Summary:
        """The summary of both tensors together, each sample weighing as many elements as it saw.

        Channels are kept when both have them; a summary of nothing changes nothing. Raises `ShapeError` when both
        have channels, but not as many.
        """
        for one, another in ((self, other), (other, self)):
            if one.size == 0 and one.channels is None:
                return another
        return Summary(
            self.moments + other.moments,
            self.sketch + other.sketch,
            float(np.fmin(self.low, other.low)),
            float(np.fmax(self.high, other.high)),
            self.size + other.size,
            self.channels.merge(other.channels) if self.channels and other.channels else None,
            self.quantiles.merge(other.quantiles) if self.quantiles and other.quantiles else None,
        )

    @property
    def mean(self) -> float:
        """The mean of the finite values; NaN when there are none."""
        return float(self.moments.mean)

    @property
    def std(self) -> float:
        """The biased standard deviation of the finite values; NaN when there are none."""
        return float(self.moments.std)

    @property
    def rms(self) -> float:
        """The root of the mean square of the finite values; NaN when there are none."""
        return float(np.hypot(self.mean, self.std))

    def cdf(self) -> Cdf:
        """The cumulative distribution that the sketch tells, with its outermost bins cut at the range."""
        return self.sketch.cdf(self.low, self.high) if self.moments.count else self.sketch.cdf()

    def quantile(self, q: ArrayLike) -> Any:
        """The value below which a share `q` of the finite values lies, never outside the range; see `Sketch`."""
        return self.cdf().quantile(q)

    @property
    def zero_share(self) -> float:
        """The share of exact zeros among the finite values; NaN when there are none."""
        return self.sketch.zero_share

    @property
    def nonfinite_share(self) -> float:
        """The share of NaN and infinities among all values seen; NaN when none was seen."""
        seen = self.sketch.total + self.sketch.nonfinite
        return self.sketch.nonfinite / seen if seen else nan

    def to_arrays(self) -> Arrays:
        """The arrays of moments and sketch, `range` (low, high), `size`; `channels.…`, `quantiles.…` where taken."""
        return {
            **self.moments.to_arrays(),
            **self.sketch.to_arrays(),
            "range": np.array([self.low, self.high], dtype=np.float64),
            "size": np.array(self.size, dtype=np.int64),
            **self.by_channel(),
        }

    def by_channel(self) -> Arrays:
        """The arrays `channels.…` and `quantiles.…` of what was taken."""
        parts = {"channels.": self.channels, "quantiles.": self.quantiles}
        return {
            name: array
            for prefix, part in parts.items()
            if part is not None
            for name, array in prefixed(prefix, part.to_arrays()).items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Summary:
        """The inverse of `to_arrays`."""
        channels, quantiles = (unprefixed(prefix, arrays) for prefix in ("channels.", "quantiles."))
        low, high = (float(bound) for bound in arrays["range"])
        return cls(
            Moments.from_arrays(arrays),
            Sketch.from_arrays(arrays),
            low,
            high,
            int(arrays["size"]),
            Moments.from_arrays(channels) if channels else None,
            Quantiles.from_arrays(quantiles) if quantiles else None,
        )
