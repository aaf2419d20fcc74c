"""A series: one quantity at one site over the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from normscope.terms.datum import Datum
from normscope.terms.site import Site


@dataclass(frozen=True, repr=False, eq=False)
class Series(Datum):
    """One quantity at one site over the steps at which it is known.

    Attributes:
        site: where; None for the whole run.
        quantity: what, by its name in `Record.series`.
        source: of which tensors: ``live``, ``probe``, ``probe_eval``, or ``""`` for what was stored as a number.
        steps: int64 (T,), ascending.
        values: float64 (T,); for ``quantiles`` (T, Q) in the order of `QUANTILES`. Not to be written into.
    """

    site: Site | None
    quantity: str
    source: str
    steps: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, site: Site | None, quantity: str, source: str, steps: Any, values: Any) -> Series:
        """A series of anything that numpy can make an array of."""
        told = np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)
        for array in told:
            array.flags.writeable = False
        return cls(site, quantity, source, *told)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> float:
        """The newest value, the median of newest quantiles; NaN when there is none."""
        if not len(self):
            return float("nan")
        newest = np.atleast_1d(self.values[-1])
        return float(newest[len(newest) // 2])

    def __repr__(self) -> str:
        where = self.site.key if self.site else "the run"
        span = f"steps {self.steps[0]}…{self.steps[-1]}, last {self.last:.4g}" if len(self) else "empty"
        source = f" ({self.source})" if self.source else ""
        return f"Series({self.quantity} of {where}{source}: {len(self)} values, {span})"
