"""A series: one quantity at one site over the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from normscope.record.columns import Columns
from normscope.terms.datum import Datum
from normscope.terms.site import Site

Steps: TypeAlias = Iterable[int] | slice | int | None
"""Which steps: numbers, a slice of numbers (``slice(100, 200)``, the end left out), at most so many, or None for all.

A single number thins a series evenly, its first and its last step among them.
"""


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


def selected(there: Sequence[int], steps: Steps) -> list[int]:
    """Those of the steps that are `there`, ascending, which `steps` asks for.

    >>> selected([0, 10, 20, 30], slice(10, 30)), selected([0, 10, 20, 30], [30, 11, 0])
    ([10, 20], [0, 30])
    """
    if steps is None:
        return list(there)
    if isinstance(steps, int):
        count = min(steps, len(there))
        return [there[-1 - round(back * (len(there) - 1) / max(1, count - 1))] for back in reversed(range(count))]
    if isinstance(steps, slice):
        start, stop = steps.start or 0, float("inf") if steps.stop is None else steps.stop
        return [step for step in there if start <= step < stop][:: steps.step or 1]
    wanted = {int(step) for step in steps}
    return [step for step in there if step in wanted]


def only(series: Series, steps: Steps) -> Series:
    """`series` at the steps that are asked for."""
    if steps is None:
        return series
    kept = np.isin(series.steps, selected(series.steps.tolist(), steps))
    return Series.of(series.site, series.quantity, series.source, series.steps[kept], series.values[kept])


def share(internal: Series, external: Series) -> Series:
    """Internal / (internal + external), where both are known; NaN where neither moved."""
    steps, ours, theirs = np.intersect1d(internal.steps, external.steps, return_indices=True)
    inner, outer = internal.values[ours], external.values[theirs]
    with np.errstate(invalid="ignore"):
        values = np.where(np.isinf(inner) & ~np.isinf(outer), 1.0, inner / (inner + outer))
    return Series.of(internal.site, "internal_share", "", steps, values)


def overlaid(own: Series, common: Series) -> Series:
    """`common`, and at the steps of `own` what that says."""
    kept = ~np.isin(common.steps, own.steps)
    steps = np.concatenate([common.steps[kept], own.steps])
    values = np.concatenate([common.values[kept], own.values])
    order = np.argsort(steps)
    return Series.of(own.site, own.quantity, own.source, steps[order], values[order])


def effective_rate(rates: Series, lengths: Series) -> Series:
    """Learning rate / ‖w‖², where both are known."""
    steps, ours, theirs = np.intersect1d(lengths.steps, rates.steps, return_indices=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = rates.values[theirs] / lengths.values[ours] ** 2
    return Series.of(lengths.site, "effective_learning_rate", lengths.source, steps, values)


def ratio_of(site: Site, columns: Callable[[Site], Columns]) -> Series:
    """‖Δθ‖ / ‖θ‖ of a parameter from the summaries of both, where both are known and θ is not zero.

    The ratios that the ranks stored are of their shards, and shares of shards have no mean.
    """
    updates, parameters = (columns(site.at(what, site.name)) for what in ("update", "parameter"))
    steps, ours, theirs = np.intersect1d(updates.steps, parameters.steps, return_indices=True)
    change, value = (
        np.hypot(rows.moments.mean[at], rows.moments.std[at]) for rows, at in ((updates, ours), (parameters, theirs))
    )
    return Series.of(site, "update_ratio", "", steps[value > 0], change[value > 0] / value[value > 0])
