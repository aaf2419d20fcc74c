"""`Track`: how one number went over a run, and since when it has stayed beyond a threshold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from normscope.terms.datum import Datum

PERSISTENCE = 3
"""An ailment must show in this many samples in a row, up to the last: one sample can be chance."""


@dataclass(frozen=True, repr=False, eq=False)
class Track(Datum):
    """One number at the sampled steps, without the samples at which it was not measured.

    Attributes:
        steps: int64, increasing.
        values: float64, finite, of the same length.
    """

    steps: np.ndarray
    values: np.ndarray

    @staticmethod
    def of(steps: Iterable[int], values: Iterable[float]) -> Track:
        """The track of `values` at `steps`; what is not finite was not measured, and is left out."""
        step, value = np.asarray([*steps], dtype=np.int64), np.asarray([*values], dtype=np.float64)
        seen = np.isfinite(value)
        return Track(step[seen], value[seen])

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> float:
        """The median of the last samples: where the run stands. NaN when nothing was measured."""
        return float(np.median(self.values[-PERSISTENCE:])) if len(self) else float("nan")

    @property
    def fallen(self) -> float | None:
        """The share of the first values that is gone in the last ones; 0 where that is within their noise.

        Of the first three values the least counts, so a spike at the start is no height to have fallen from. None
        with fewer than six samples.
        """
        if len(self) < 6:
            return None
        start, end = float(self.values[:3].min()), float(np.median(self.values[-max(3, len(self) // 10) :]))
        noise = 1.4826 * float(np.median(np.abs(np.diff(self.values)))) / 2**0.5
        return (start - end) / abs(start) if start and start - end > 3 * noise else 0.0

    def after(self, step: int) -> Track:
        """The samples from `step` on."""
        late = self.steps >= step
        return Track(self.steps[late], self.values[late])

    def late(self) -> Track:
        """The second half of the run by steps: what holds here is no transient of the start."""
        return self.after(int(self.steps[-1]) // 2) if len(self) else self

    def starts(self, *, below: float) -> int:
        """How many samples from the first on lie below the threshold without a break."""
        beyond = np.flatnonzero(~(self.values < below))
        return int(beyond[0]) if len(beyond) else len(self)

    def since(self, *, above: float | None = None, below: float | None = None) -> int | None:
        """The first step of the unbroken stretch beyond the threshold that reaches to the last sample.

        None when the last sample is not beyond it, or the stretch is shorter than `PERSISTENCE` samples (than all
        samples, when there are fewer).
        """
        beyond = np.ones(len(self), dtype=bool)
        if above is not None:
            beyond &= self.values > above
        if below is not None:
            beyond &= self.values < below
        within = np.flatnonzero(~beyond)
        start = int(within[-1]) + 1 if len(within) else 0
        stretch = len(self) - start
        return int(self.steps[start]) if stretch >= max(1, min(PERSISTENCE, len(self))) else None
