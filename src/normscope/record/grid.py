"""Every tensor of a run at once: `Grid`, the numbers of their summaries, and `Excerpt`, the summaries themselves.

A question for each tensor costs a search in the file for each of its steps; here one question is for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from normscope.record.columns import Columns
from normscope.record.malformed import reading
from normscope.record.quantities import FROM_COLUMNS
from normscope.record.rankfile import RankFile
from normscope.record.rows import read_summary
from normscope.record.series import Series
from normscope.stats.summary import Summary
from normscope.terms.site import Site


@dataclass(frozen=True, eq=False)
class Grid:
    """Sites × steps, as far as they are filled: the numbers of all summaries of one source at some steps.

    Attributes:
        source: ``live``, ``probe`` or ``probe_eval``.
        steps: int64 (T,), ascending: what was asked for.
        rows: one row a summary; its ``steps`` are places, site number × T + the place of the step in `steps`.
    """

    source: str
    steps: np.ndarray
    rows: Columns = field(repr=False)
    _numbers: Mapping[str, int] = field(repr=False)
    _known: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, ranks: Sequence[RankFile], source: str, steps: np.ndarray) -> Grid:
        """The numbers of every site at `steps`, merged over the ranks."""
        numbers: dict[str, int] = {}
        parts = [_placed(rank, source, steps, numbers) for rank in ranks]
        return cls(source, steps, Columns.merged(parts), numbers)

    def series(self, tensor: Site, quantity: str) -> Series:
        """A quantity of `quantities.FROM_COLUMNS` of one tensor, at those of the steps at which it has a summary."""
        if quantity not in self._known:
            self._known[quantity] = FROM_COLUMNS[quantity](self.rows)
        at = self._rows_of(tensor)
        return Series.of(tensor, quantity, self.source, self._steps_at(at), self._known[quantity][at])

    def columns(self, tensor: Site) -> Columns:
        """The numbers of one tensor."""
        at = self._rows_of(tensor)
        return self.rows.at(at, self._steps_at(at))

    def _rows_of(self, tensor: Site) -> slice:
        number, width = self._numbers.get(tensor.key, -1), len(self.steps)
        return slice(*np.searchsorted(self.rows.steps, (number * width, (number + 1) * width)))

    def _steps_at(self, rows: slice) -> np.ndarray:
        return self.steps[self.rows.steps[rows] % max(1, len(self.steps))]


@reading("A summary")
def _placed(rank: RankFile, source: str, steps: np.ndarray, numbers: dict[str, int]) -> Columns:
    """One rank's rows in the order of their places; sites that are new take the next number."""
    keys = rank.keys()
    known = np.array(sorted(keys), dtype=np.int64)
    number = np.array([numbers.setdefault(keys[one], len(numbers)) for one in known.tolist()], dtype=np.int64)
    sites, rows = rank.grid(source, steps.tolist())
    kept = np.flatnonzero(np.isin(sites, known))
    places = number[np.searchsorted(known, sites[kept])] * len(steps) + np.searchsorted(steps, rows.steps[kept])
    order = np.argsort(places)
    return rows.at(kept[order], places[order])


@dataclass(frozen=True, eq=False)
class Excerpt:
    """The whole summaries of every tensor, of one source at some steps; each is decoded when it is asked for.

    Attributes:
        source: ``live``, ``probe`` or ``probe_eval``.
        steps: what was asked for, ascending.
    """

    source: str
    steps: tuple[int, ...]
    _stored: Mapping[tuple[str, int], list[tuple[Any, ...]]] = field(repr=False)
    _known: dict[tuple[str, int], Summary] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, ranks: Sequence[RankFile], source: str, steps: Sequence[int]) -> Excerpt:
        """The summaries of every site at `steps`."""
        stored: dict[tuple[str, int], list[tuple[Any, ...]]] = {}
        for rank in ranks:
            keys = rank.keys()
            for (number, step), columns in rank.excerpt(source, steps).items():
                if number in keys:
                    stored.setdefault((keys[number], step), []).append(columns)
        return cls(source, tuple(steps), stored)

    def summary(self, tensor: Site, step: int) -> Summary | None:
        """The summary of a tensor at a step, merged over the ranks; None where there is none."""
        asked = tensor.key, step
        if asked in self._stored and asked not in self._known:
            self._known[asked] = reduce(Summary.merge, (read_summary(*columns) for columns in self._stored[asked]))
        return self._known.get(asked)


def scalars_by_site(ranks: Sequence[RankFile], quantity: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of a stored number of every site that has it, by key: the mean over the ranks."""
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for rank in ranks:
        for key, found in rank.scalars_by_site(quantity).items():
            parts.setdefault(key, []).append(found)
    return {key: averaged(found) for key, found in parts.items()}


def averaged(ranks: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the ranks as one: at each step the mean of those that have it."""
    if len(ranks) == 1:
        return ranks[0]
    steps, place = np.unique(np.concatenate([steps for steps, _ in ranks]), return_inverse=True)
    total = np.bincount(place, np.concatenate([values for _, values in ranks]), len(steps))
    return steps, total / np.bincount(place, minlength=len(steps))


@dataclass(frozen=True, eq=False)
class Broken:
    """A tensor that held NaN or infinity: at a step of a source, which share of it; `masked` when it was −∞ alone."""

    site: Site
    step: int
    source: str
    share: float
    masked: bool


@reading("A summary")
def broken(ranks: Sequence[RankFile], sites: Mapping[str, Site]) -> list[Broken]:
    """Every summary that is not finite, the ranks' counts of one tensor and step added up."""
    counts: dict[tuple[str, int, str], np.ndarray] = {}
    for rank in ranks:
        for key, step, source, *told in rank.nonfinite():
            if key in sites:
                counts[key, step, source] = counts.get((key, step, source), np.zeros(3)) + np.array(told, dtype=float)
    return [
        Broken(sites[key], step, source, (bad + below) / total, bad == 0)
        for (key, step, source), told in counts.items()
        for bad, below, total in [told.tolist()]
    ]
