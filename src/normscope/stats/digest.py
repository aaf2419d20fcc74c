"""`Digest`: a summary as it is kept until it is written: ten numbers, and its sketch in few bytes."""

from __future__ import annotations

from math import hypot, nan, sqrt
from typing import NamedTuple

import numpy as np

from normscope.stats.code import decode, encode
from normscope.stats.moments import Moments
from normscope.stats.sketch import BINS, Sketch
from normscope.stats.summary import Summary


class Digest(NamedTuple):
    """What `Summary` holds, without moments per channel: half a kilobyte.

    seen, mean, m2, low, high: of the finite values, NaN where there was none. zeros, nan, pos_inf, neg_inf: how
    many. code: the filled bins, see `code.encode`. size: elements of the tensor that it stands for.
    """

    seen: float
    mean: float
    m2: float
    low: float
    high: float
    zeros: float
    nan: float
    pos_inf: float
    neg_inf: float
    code: bytes
    size: int

    @classmethod
    def of(cls, summary: Summary) -> Digest:
        """That of a summary; its channels are left out."""
        moments, sketch = summary.moments, summary.sketch
        numbers = (moments.count, moments.mean, moments.m2, summary.low, summary.high)
        apart = (sketch.zeros, sketch.nan, sketch.pos_inf, sketch.neg_inf)
        return cls._make((*map(float, (*numbers, *apart)), encode(sketch.counts), summary.size))

    @property
    def summary(self) -> Summary:
        """The summary. Raises ValueError when `code` is none."""
        moments = Moments(*(np.asarray(number, dtype=np.float64) for number in self[:3]))
        apart = (int(number) for number in self[5:9])
        return Summary(moments, Sketch(decode(self.code, BINS), *apart), self.low, self.high, self.size)

    @property
    def nonfinite(self) -> int:
        """The number of values that are NaN or infinite."""
        return int(self.nan + self.pos_inf + self.neg_inf)

    @property
    def rms(self) -> float:
        """The root of the mean square of the finite values; NaN when there are none."""
        return hypot(self.mean, sqrt(self.m2 / self.seen)) if self.seen else nan
