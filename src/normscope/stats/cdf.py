"""A distribution known cell by cell: how much lies in each cell, spread evenly inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from normscope.terms.errors import DataError


@dataclass(frozen=True, eq=False)
class Cdf:
    """The cumulative distribution of counted cells.

    edges: borders of the cells, ascending, float64 (K + 1,); a cell of no width is an atom.
    until: the count left of each border, int64 (K + 1,), from 0 to the total.
    """

    edges: np.ndarray
    until: np.ndarray

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.until[-1])

    def below(self, t: ArrayLike) -> np.ndarray:
        """The share strictly below each `t`; NaN when nothing was counted."""
        return self._share(np.searchsorted(self.edges, t, side="left") - 1, t)

    def upto(self, t: ArrayLike) -> np.ndarray:
        """The share at or below each `t`; NaN when nothing was counted."""
        return self._share(np.searchsorted(self.edges, t, side="right") - 1, t)

    def _share(self, cell: np.ndarray, t: ArrayLike) -> np.ndarray:
        """The share left of `t`, which lies in `cell`; −1 stands left of all cells, K right of them."""
        last = len(self.edges) - 2
        inner = np.clip(cell, 0, last)
        width = self.edges[inner + 1] - self.edges[inner]
        inside = np.divide(t - self.edges[inner], width, out=np.zeros(np.shape(width)), where=width > 0)
        count = self.until[inner] + inside * (self.until[inner + 1] - self.until[inner])
        count = np.where(cell < 0, 0, np.where(cell > last, self.total, count))
        return count / self.total if self.total else np.full(np.shape(count), np.nan)

    def quantile(self, q: ArrayLike) -> Any:
        """The value below which a share `q` lies, as `numpy.quantile` interpolates between order statistics.

        Order statistics stand evenly spaced inside their cell. A float for a float, an array for an array; NaN when
        nothing was counted. Raises `DataError` for a share outside of [0, 1].
        """
        if not np.all((np.asarray(q) >= 0) & (np.asarray(q) <= 1)):
            raise DataError(
                "A quantile was asked for.",
                found={"q": q},
                because="a quantile belongs to a share of the values",
                do="give q from 0 (the least) to 1 (the greatest)",
            )
        place = np.asarray(q, dtype=np.float64) * (self.total - 1)
        low = self._order_statistic(np.floor(place))
        value = low + (place - np.floor(place)) * (self._order_statistic(np.ceil(place)) - low)
        return value if np.ndim(q) else float(value)

    def _order_statistic(self, rank: np.ndarray) -> np.ndarray:
        if not self.total:
            return np.full(np.shape(rank), np.nan)
        cell = np.searchsorted(self.until, rank, side="right") - 1
        inside = (rank - self.until[cell] + 0.5) / (self.until[cell + 1] - self.until[cell])
        return self.edges[cell] + inside * (self.edges[cell + 1] - self.edges[cell])
