"""The reading side of a record: what the training left on disk, as series, summaries and events."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from functools import reduce
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from normscope.record import schema
from normscope.record.columns import Columns
from normscope.record.places import Place, unknown
from normscope.record.quantities import DERIVED, FROM_COLUMNS, FROM_SUMMARY, SHIFTS, STORED
from normscope.record.rankfile import RankFile
from normscope.record.rows import SOURCES, Event
from normscope.record.series import Series
from normscope.stats.distance import DISTANCES
from normscope.stats.summary import Summary
from normscope.terms.datum import plain
from normscope.terms.site import Site
from normscope.terms.verdict import Trial


class Record:
    """A run on disk; it may still be growing, and every answer is of what was last flushed.

    The ranks of a distributed run are read as one: summaries of the same tensor and step merge, scalars are averaged
    over the ranks that have them, events stand in the order of time, and what describes the run is of the lowest rank.

    Args:
        path: a run directory, one file of it, or a record.

    Raises:
        RecordError: the path is missing or holds no record, is of a newer schema, or is damaged.
    """

    def __init__(self, path: str | PathLike[str] | Record) -> None:
        self.path: Path = path.path if isinstance(path, Record) else Path(path)
        self._where = path._where if isinstance(path, Record) else self.path.absolute()
        self._files: dict[Path, RankFile] = {}
        for rank in self._ranks():
            rank.segments()

    @property
    def meta(self) -> dict[str, Any]:
        """What is known of the run: versions, machine, command line, and what the watcher noted."""
        known: dict[str, Any] = {}
        for rank in reversed(self._ranks()):
            known.update(rank.meta())
        return known

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in execution order where it is known."""
        sites: dict[str, Site] = {}
        for rank in self._ranks():
            sites = {**rank.sites(), **sites}
        return tuple(sorted(sites.values(), key=lambda site: (site.depth < 0, site.depth)))

    @property
    def steps(self) -> np.ndarray:
        """The sampled steps, int64, ascending."""
        return np.unique(np.concatenate([rank.steps() for rank in self._ranks()]))

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened, in the order of time."""
        return tuple(sorted((event for rank in self._ranks() for event in rank.events()), key=lambda event: event.time))

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials, oldest first."""
        return tuple(trial for rank in self._ranks() for trial in rank.trials())

    @property
    def complete(self) -> bool:
        """Whether every rank was closed properly; False also while training writes."""
        return all(rank.segments() and rank.segments()[-1][1] is not None for rank in self._ranks())

    @property
    def seconds(self) -> float:
        """For how long the lowest rank was recorded: the sum of its segments that were closed properly."""
        return sum(ended - started for started, ended, _ in self._ranks()[0].segments() if ended is not None)

    @property
    def parts(self) -> tuple[Path, ...]:
        """The records in folders of this one, by name: one for each model of a script that trained several."""
        if os.path.isfile(self._where):
            return ()
        files = (file for file in self._where.glob("*/rank*.sqlite") if schema.rank_of(file.name) is not None)
        return tuple(self.path / folder for folder in sorted({file.parent.name for file in files}))

    def quantities(self, site: Site | str | None) -> tuple[str, ...]:
        """What `series` can tell of a site, or of the whole run (None). Raises UnknownNameError for an unknown site."""
        ranks = self._ranks()
        if site is None:
            return tuple(sorted(_contents(ranks, "")))
        place = Place.find(ranks, site)
        there = {tensor: _contents(ranks, tensor.key) for tensor in place.tensors}
        derived = []
        for name in DERIVED:
            tensor = place.home(name)
            sources = _sources(there[tensor]) if tensor else set()
            if sources and SHIFTS.get(name, set()) <= sources:
                derived.append(name)
        return (*derived, *sorted({name for contents in there.values() for name in contents} - {""}))

    def series(self, site: Site | str | None, quantity: str, *, source: str | None = None) -> Series:
        """One quantity at one site over the steps; empty where the record has nothing of it.

        Args:
            site: a site, its key, or a module path, which means the tensor that the quantity is of: the input for
                ``saturated``, the gradient for ``gradient_norm``, else the output. None is the whole run.
            quantity: a derived one (``mean``, ``std``, ``min``, ``max``, ``zeros``, ``nonfinite``, ``gradient_norm``,
                ``quantiles``, ``saturated``, ``internal_shift``, ``external_shift``) or the name of a scalar.
            source: ``live``, ``probe`` or ``probe_eval``; the first of them that the site has when None.

        Raises:
            UnknownNameError: no such site, a quantity that is neither known nor in the record, or no such source.
        """
        if source is not None and source not in SOURCES:
            raise unknown("source", source, SOURCES, "a summary is of a training batch, or of the fixed probe")
        if site is None or quantity not in DERIVED:
            return self._scalars(site, quantity)
        if quantity in SHIFTS:
            return self.shift(site, kind="internal" if quantity == "internal_shift" else "external")
        place = Place.find(self._ranks(), site)
        tensor = place.home(quantity)
        if tensor is None:
            return Series.of(place.tensors[0], quantity, source or "live", [], [])
        source = source or self._source(tensor)
        if quantity in FROM_COLUMNS:
            rows = Columns.merged([rank.columns(tensor.key, source) for rank in self._ranks()])
            return Series.of(tensor, quantity, source, rows.steps, FROM_COLUMNS[quantity](rows))
        told = self.summaries(tensor, source)
        values = [FROM_SUMMARY[quantity](summary, tensor) for _, summary in told]
        return Series.of(tensor, quantity, source, [step for step, _ in told], values)

    def summary(self, site: Site | str, step: int, source: str = "live") -> Summary | None:
        """The summary of a tensor at a step, or None. Raises UnknownNameError for an unknown site."""
        key = self._tensor(site).key
        parts = [part for rank in self._ranks() if (part := rank.summary(key, int(step), source)) is not None]
        return _merged(parts) if parts else None

    def summaries(self, site: Site | str, source: str = "live") -> list[tuple[int, Summary]]:
        """The summaries of a tensor, by step. Raises UnknownNameError for an unknown site."""
        key = self._tensor(site).key
        by_step: dict[int, list[Summary]] = {}
        for rank in self._ranks():
            for step, summary in rank.summaries(key, source):
                by_step.setdefault(step, []).append(summary)
        return [(step, _merged(by_step[step])) for step in sorted(by_step)]

    def shift(
        self,
        site: Site | str,
        *,
        distance: str = "shift",
        against: Literal["previous", "start"] = "previous",
        kind: Literal["internal", "external"] = "internal",
    ) -> Series:
        """How far the distribution of a tensor has moved.

        Internal: the probe now against the probe at the previous probed step, or at the first one (`against`), so the
        parameters alone differ. External: the training batch against the probe at the same step, so the data alone
        differ.

        Args:
            site: a site, its key, or a module path (its output).
            distance: a name of `normscope.stats.DISTANCES`; ``shift`` is in standard deviations of the reference.

        Raises:
            UnknownNameError: no such site, distance, kind or reference.
        """
        if distance not in DISTANCES:
            raise unknown("distance", distance, tuple(DISTANCES), "distances between summaries are a closed list")
        if against not in ("previous", "start"):
            raise unknown("reference", against, ("previous", "start"), "a probe is compared with an earlier probe")
        if kind not in ("internal", "external"):
            raise unknown("kind of shift", kind, ("internal", "external"), "parameters move a layer, or data do")
        tensor = self._tensor(site)
        probes = self.summaries(tensor, "probe")
        if kind == "external":
            references = dict(probes)
            pairs = [(s, now, references[s]) for s, now in self.summaries(tensor, "live") if s in references]
        else:
            before = probes if against == "previous" else probes[:1] * len(probes)
            pairs = [(s, now, then) for (s, now), (_, then) in zip(probes[1:], before, strict=False)]
        values = [DISTANCES[distance](now, then) for _, now, then in pairs]
        source = "probe" if kind == "internal" else "live"
        return Series.of(tensor, f"{kind}_shift", source, [s for s, _, _ in pairs], values)

    def describe(self) -> str:
        """The record in a few lines: where, how much, whether complete."""
        steps, events = self.steps, self.events
        span = f"{len(steps)} sampled steps" + (f", {steps[0]} to {steps[-1]}" if len(steps) else "")
        kinds = sorted({event.kind for event in events})
        ranks = self._ranks()
        lines = [
            f"record    {self.path}, {'complete' if self.complete else 'not closed: in progress, or broken off'}",
            f"steps     {span}",
            f"sites     {len(self.sites)}, with {sum(rank.count() for rank in ranks)} summaries",
            f"scalars   {', '.join(self.quantities(None)) or 'none'}",
            f"events    {len(events)}" + (f" ({', '.join(kinds)})" if kinds else ""),
            f"ranks     {', '.join(str(rank.rank) for rank in ranks)}",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """What the record holds, its measurements aside: plain JSON values."""
        return {
            "path": str(self.path),
            "complete": self.complete,
            "steps": self.steps.tolist(),
            "meta": plain(self.meta),
            "sites": plain(self.sites),
            "quantities": list(self.quantities(None)),
            "events": plain(self.events),
            "trials": plain(self.trials),
        }

    def close(self) -> None:
        """Let the files go; a later question opens them again."""
        for rank in self._files.values():
            rank.close()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "complete" if self.complete else "not closed"
        return f"Record({str(self.path)!r}: {len(self.sites)} sites, {len(self.steps)} sampled steps, {state})"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.describe())}</pre>"

    def _ranks(self) -> list[RankFile]:
        """The files as they are now, lowest rank first; one that another process is about to fill is left out."""
        found = self._found()
        filled = [file for file in found if _size(file)] or list(found)
        for file in filled:
            if file not in self._files:
                self._files[file] = RankFile(file, found[file])
        return [self._files[file] for file in filled]

    def _found(self) -> dict[Path, int]:
        if os.path.isfile(self._where):
            return {self._where: schema.rank_of(self._where.name) or 0}
        try:
            names = os.listdir(self._where)
        except FileNotFoundError:
            raise schema.not_a_record(self.path, "nothing") from None
        except OSError as error:
            raise schema.not_a_record(self.path, f"a directory that cannot be read ({error.strerror})") from error
        ranks = {self._where / name: rank for name in names if (rank := schema.rank_of(name)) is not None}
        if not ranks:
            raise schema.not_a_record(self.path, "a directory without any rank<N>.sqlite")
        return dict(sorted(ranks.items(), key=lambda item: item[1]))

    def _tensor(self, site: Site | str) -> Site:
        place = Place.find(self._ranks(), site)
        return place.home("") or place.tensors[0]

    def _source(self, tensor: Site) -> str:
        """The first source of which the tensor has summaries."""
        there = _sources(_contents(self._ranks(), tensor.key))
        return next((source for source in SOURCES if source in there), SOURCES[0])

    def _scalars(self, site: Site | str | None, quantity: str) -> Series:
        """A stored number: of the site itself, or of the tensor of its module that has it. The mean over the ranks."""
        ranks = self._ranks()
        tensors = (None,) if site is None else Place.find(ranks, site).tensors
        having = (tensor for tensor in tensors if quantity in _contents(ranks, tensor.key if tensor else ""))
        tensor = next(having, tensors[0])
        parts = [rank.scalars(tensor.key if tensor else "", quantity) for rank in ranks]
        steps, place = np.unique(np.concatenate([steps for steps, _ in parts]), return_inverse=True)
        if not len(steps):
            self._check_known(quantity, STORED if site is None else (*STORED, *DERIVED))
        total = np.bincount(place, np.concatenate([values for _, values in parts]), len(steps))
        return Series.of(tensor, quantity, "", steps, total / np.bincount(place, minlength=len(steps)))

    def _check_known(self, quantity: str, names: Sequence[str]) -> None:
        known = {*names, *_contents(self._ranks(), None)} - {""}
        if quantity not in known:
            raise unknown("quantity", quantity, known, "it is neither derived from summaries nor stored in this record")


def _contents(ranks: Sequence[RankFile], key: str | None) -> dict[str, set[str]]:
    """What there is of a site, of the whole run ("") or of anything (None): from quantity to its sources."""
    contents: dict[str, set[str]] = {}
    for rank in ranks:
        for quantity, source in rank.contents(key):
            contents.setdefault(quantity, set()).add(source)
    return contents


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _sources(contents: Mapping[str, set[str]]) -> set[str]:
    return contents.get("", set())


def _merged(parts: Sequence[Summary]) -> Summary:
    return reduce(Summary.merge, parts)
