"""`Digest`: a summary as it is kept until it is written: ten numbers, and its sketch in few bytes; `Digests`: many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from normscope.stats.code import decode
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
        return cls._make((*map(float, (*numbers, *apart)), sketch.code, summary.size))

    @property
    def summary(self) -> Summary:
        """The summary. Raises ValueError when `code` is none."""
        return self._with(Sketch(decode(self.code, BINS), *map(int, self[5:9])))

    @property
    def own(self) -> Summary:
        """The summary of a digest that was made here: its sketch is decoded when somebody looks."""
        return self._with(Sketch.coded(self.code, *map(int, self[5:9])))

    def _with(self, sketch: Sketch) -> Summary:
        moments = Moments(*(np.asarray(number, dtype=np.float64) for number in self[:3]))
        return Summary(moments, sketch, self.low, self.high, self.size)

    @property
    def nonfinite(self) -> int:
        """The number of values that are NaN or infinite."""
        return int(self.nan + self.pos_inf + self.neg_inf)


@dataclass(frozen=True, eq=False)
class Digests(Sequence[Digest]):
    """Digests of many tensors, column by column: what a step tells costs no object for each of them.

    numbers: float64 (n, 9), those of `Digest` in its order. codes, sizes: n of each.
    """

    numbers: np.ndarray
    codes: Sequence[bytes]
    sizes: Sequence[int]

    @classmethod
    def of(cls, told: Sequence[Digest]) -> Digests:
        """Those of single ones."""
        numbers = np.array([each[:9] for each in told], dtype=np.float64).reshape(len(told), 9)
        return cls(numbers, [each.code for each in told], [each.size for each in told])

    @classmethod
    def joined(cls, parts: Sequence[Digests]) -> Digests:
        """Those of all parts, one after the other."""
        numbers = np.concatenate([np.empty((0, 9)), *(part.numbers for part in parts)])
        return cls(numbers, [code for part in parts for code in part.codes], [n for part in parts for n in part.sizes])

    def at(self, places: Sequence[int]) -> Digests:
        """Those at `places`, which may repeat, and count from the end where they are negative."""
        numbers = self.numbers.take(places, axis=0) if len(places) else self.numbers[:0]
        return Digests(numbers, [self.codes[at] for at in places], [self.sizes[at] for at in places])

    @property
    def nonfinite(self) -> np.ndarray:
        """How many values of each are NaN or infinite, float64 (n,)."""
        return self.numbers[:, 6:9].sum(1)

    @property
    def broken(self) -> bool:
        """Whether any value of any of them is NaN or infinite."""
        return bool(self.numbers[:, 6:9].any())

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return Digests(self.numbers[at], self.codes[at], self.sizes[at])
        return Digest._make((*self.numbers[at].tolist(), self.codes[at], self.sizes[at]))

    def __iter__(self) -> Iterator[Digest]:
        told = zip(self.numbers.tolist(), self.codes, self.sizes)
        return (Digest._make((*row, code, size)) for row, code, size in told)
