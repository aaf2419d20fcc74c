"""`Layers`: one number for every layer at every step, and what an ailment that grows along depth looks like in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from normscope.diagnose.track import Track
from normscope.terms.datum import Datum


@dataclass(frozen=True, repr=False, eq=False)
class Layers(Datum):
    """Layers × steps, layers in execution order.

    Attributes:
        paths: the module path of each layer.
        steps: int64, increasing: every step at which some layer was measured.
        values: float64 of shape (layers, steps); NaN where a layer was not measured.
    """

    paths: tuple[str, ...]
    steps: np.ndarray
    values: np.ndarray

    @staticmethod
    def of(rows: Mapping[str, Track]) -> Layers:
        """From one track a layer, in execution order."""
        steps = np.unique(np.concatenate([track.steps for track in rows.values()] or [np.array([], dtype=np.int64)]))
        values = np.full((len(rows), len(steps)), np.nan)
        for row, track in zip(values, rows.values()):
            row[np.searchsorted(steps, track.steps)] = track.values
        return Layers(tuple(rows), steps, values)

    def __len__(self) -> int:
        return len(self.paths)

    def at(self, path: str) -> Track:
        """How one layer went."""
        return Track.of(self.steps, self.values[self.paths.index(path)])

    def starvation(self) -> Track:
        """How little reaches the first layers: see `starved`. 1 where every layer has its share."""
        return Track.of(self.steps, [starved(column) for column in self.values.T])

    def typical(self) -> Track:
        """The median over the layers."""
        return Track.of(self.steps, [np.nanmedian(column) if len(column) else np.nan for column in self.values.T])

    def behind(self) -> Track:
        """How the last layer went."""
        return Track.of(self.steps, [column[-1] if len(column) else np.nan for column in self.values.T])

    def flood(self) -> Track:
        """How much more the first layers get than the last: the median of the first quarter over that of the last."""
        return Track.of(self.steps, [_flood(column) for column in self.values.T])


def starved(column: np.ndarray) -> float:
    """How little reaches the beginning of a network: at the split at which the beginning comes off worst.

    The beginning up to a split is as well off as its best layer, so one branch that is silent (a residual branch
    whose scale starts at zero) starves nothing while a skip connection feeds the layers around it. It is compared
    with the median of the layers behind the split.

    Args:
        column: one number a layer, not negative; NaN where it was not measured.
    """
    return min((_reach(column, place) for place in range(1, len(column))), default=1.0)


def starved_layers(column: np.ndarray, threshold: float) -> int:
    """How many first layers have less than the threshold of what a typical layer behind them has."""
    below = [place for place in range(1, len(column)) if _reach(column, place) < threshold]
    return max(below, default=0)


def _reach(column: np.ndarray, place: int) -> float:
    """The best of the layers before `place` over the median of those from it on; 1 where nothing can be compared."""
    first, rest = (part[np.isfinite(part)] for part in (column[:place], column[place:]))
    typical = float(np.median(rest)) if len(rest) else 0.0
    return float(first.max()) / typical if len(first) and typical > 0 else 1.0


def _flood(column: np.ndarray) -> float:
    seen = column[np.isfinite(column)]
    quarter = max(1, len(seen) // 4)
    if len(seen) < 2 or not np.median(seen[-quarter:]) > 0:
        return float("nan")
    return float(np.median(seen[:quarter]) / np.median(seen[-quarter:]))


def collapsed(column: np.ndarray, threshold: float) -> int:
    """The first layer from which on, to the last, every number is below the threshold; the number of layers if none."""
    alive = np.flatnonzero(~(column < threshold))
    return int(alive[-1]) + 1 if len(alive) else 0
