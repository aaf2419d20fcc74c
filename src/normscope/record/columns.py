"""The numbers of one site's summaries over the steps: what most quantities need, without decoding any array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from normscope.record.malformed import reading
from normscope.stats.moments import Moments, combined

_MOMENTS = ("count", "mean", "m2")
_REST = ("low", "high", "zeros", "nonfinite", "size")


@dataclass(frozen=True)
class Columns:
    """One row a step, of finite elements that were looked at; arrays of shape (T,).

    steps: int64, ascending. moments: of shape (T,). low, high: least and greatest value, NaN when there was none.
    zeros, nonfinite: how many. size: elements of the tensor.
    """

    steps: np.ndarray
    moments: Moments
    low: np.ndarray
    high: np.ndarray
    zeros: np.ndarray
    nonfinite: np.ndarray
    size: np.ndarray

    SQL: ClassVar[str] = (
        "row.step, row.count, row.mean, row.m2, row.low, row.high, row.zeros, "
        "row.nan + row.pos_inf + row.neg_inf, row.size"
    )

    @classmethod
    @reading("A summary")
    def of(cls, rows: Sequence[tuple[Any, ...]]) -> Columns:
        """From the rows of a query for `SQL`; a NULL is NaN."""
        steps = np.array([row[0] for row in rows], dtype=np.int64)
        numbers = np.array([row[1:] for row in rows], dtype=np.float64).reshape(len(rows), 8).T
        count, mean, m2, low, high, zeros, nonfinite, size = numbers
        return cls(steps, Moments(count, mean, m2), low, high, zeros, nonfinite, size)

    @classmethod
    @reading("A block of summaries")
    def of_block(cls, steps: np.ndarray, numbers: np.ndarray) -> Columns:
        """From numbers as `block.read_numbers` gives them, each of one of `steps`."""
        count, mean, m2, low, high, zeros, nan, pos_inf, neg_inf, size, _ = numbers.T
        if len(steps) != len(size):
            raise ValueError(f"{len(size)} summaries for {len(steps)} places")
        return cls(steps, Moments(count, mean, m2), low, high, zeros, nan + pos_inf + neg_inf, size)

    @classmethod
    def joined(cls, parts: Sequence[Columns], *, by_step: bool = False) -> Columns:
        """The rows of all parts, one part after the other; `by_step`: ascending, the last of the same step."""
        if len(parts) == 1:
            return parts[0]
        moments = Moments(*(np.concatenate([getattr(part.moments, one) for part in parts]) for one in _MOMENTS))
        rest = (np.concatenate([getattr(part, one) for part in parts]) for one in _REST)
        whole = cls(np.concatenate([part.steps for part in parts]), moments, *rest)
        if not by_step:
            return whole
        steps, last = np.unique(whole.steps[::-1], return_index=True)
        return whole.at(len(whole.steps) - 1 - last, steps)

    def at(self, rows: np.ndarray | slice, steps: np.ndarray) -> Columns:
        """Those of the rows, which now stand for `steps`."""
        moments = Moments(*(getattr(self.moments, one)[rows] for one in _MOMENTS))
        return Columns(steps, moments, *(getattr(self, one)[rows] for one in _REST))

    @classmethod
    def merged(cls, ranks: Sequence[Columns]) -> Columns:
        """The ranks' rows of the same step as one."""
        if len(ranks) == 1:
            return ranks[0]
        steps = np.unique(np.concatenate([rank.steps for rank in ranks])) if ranks else np.array([], np.int64)
        places = [np.searchsorted(steps, rank.steps) for rank in ranks]

        def stacked(name: str, missing: float) -> np.ndarray:
            table = np.full((max(1, len(ranks)), len(steps)), missing)
            for line, rank, place in zip(table, ranks, places, strict=False):
                line[place] = getattr(rank.moments if hasattr(rank.moments, name) else rank, name)
            return table

        return cls(
            steps,
            combined(stacked("count", 0.0), stacked("mean", np.nan), stacked("m2", 0.0)),
            np.fmin.reduce(stacked("low", np.nan)),
            np.fmax.reduce(stacked("high", np.nan)),
            stacked("zeros", 0.0).sum(0),
            stacked("nonfinite", 0.0).sum(0),
            stacked("size", 0.0).sum(0),
        )
