"""The reading side of a record: what the training left on disk, as series, summaries and events."""

from __future__ import annotations

import html
import os
import socket
from collections.abc import Mapping, Sequence
from functools import reduce
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from normscope.record import schema, table
from normscope.record.columns import Columns
from normscope.record.grid import Broken, Excerpt, Grid, averaged, broken, scalars_by_site
from normscope.record.lock import Lock
from normscope.record.places import Place, unknown
from normscope.record.quantities import DERIVED, FROM_COLUMNS, FROM_RATE, FROM_SUMMARY, SHIFTS, STORED
from normscope.record.rankfile import RankFile
from normscope.record.rows import SOURCES, Event
from normscope.record.series import Series, Steps, effective_rate, only, overlaid, ratio_of, selected, share
from normscope.stats.distance import DISTANCES, PER_CHANNEL
from normscope.stats.summary import Summary
from normscope.terms.datum import plain
from normscope.terms.site import Site
from normscope.terms.verdict import Trial

MOST = 512
"""Steps at which a number is derived from summaries for every tensor at once."""


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
    def state(self) -> Literal["complete", "in progress", "broken off", "in progress, or broken off"]:
        """What became of the run: whether a process of this machine still writes it, where the system can tell."""
        if self.complete:
            return "complete"
        held = [Lock.is_held(file) for file in self._found()]
        if any(held):
            return "in progress"
        away = self.meta.get("host") != socket.gethostname()
        return "in progress, or broken off" if away or None in held else "broken off"

    @property
    def seconds(self) -> float:
        """For how long the lowest rank was recorded: the sum of its segments that were closed properly."""
        return sum(ended - started for started, ended, _ in self._ranks()[0].segments() if ended is not None)

    @property
    def started(self) -> float:
        """When recording began, seconds since 1970, UTC; 0 where nothing is recorded."""
        return min((segment[0] for rank in self._ranks() for segment in rank.segments()), default=0.0)

    @property
    def parts(self) -> tuple[Path, ...]:
        """The records in folders of this one, by name: one for each model of a script that trained several."""
        if os.path.isfile(self._where):
            return ()
        files = (file for file in self._where.glob("*/rank*.sqlite") if schema.rank_of(file.name) is not None)
        return tuple(self.path / folder for folder in sorted({file.parent.name for file in files}))

    def contents(self, site: Site) -> dict[str, tuple[str, ...]]:
        """What is stored of one tensor: numbers by name, each ``()``; under ``""`` the sources that have summaries."""
        there = _contents(self._ranks(), site.key)
        return {name: tuple(source for source in SOURCES if source in there[name]) for name in sorted(there)}

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

    def series(
        self, site: Site | str | None, quantity: str, *, source: str | None = None, steps: Steps = None
    ) -> Series:
        """One quantity at one site over the steps; empty where the record has nothing of it.

        Args:
            site: a site, its key, or a module path, which means the tensor that the quantity is of: the input for
                ``saturated``, the gradient for ``gradient_norm``, else the output. None is the whole run.
            quantity: a derived one (``mean``, ``std``, ``min``, ``max``, ``zeros``, ``nonfinite``, ``gradient_norm``,
                ``weight_norm``, ``effective_learning_rate``, ``quantiles``, ``saturated``, ``internal_shift``,
                ``external_shift``, ``internal_share``) or the name of a scalar.
            source: ``live``, ``probe`` or ``probe_eval``; the first of them that the site has when None.
            steps: only these steps: numbers, a slice of numbers (``slice(100, 200)``), or at most so many of them,
                evenly; all when None.

        Raises:
            UnknownNameError: no such site, a quantity that is neither known nor in the record, or no such source.
        """
        if source is not None and source not in SOURCES:
            raise unknown("source", source, SOURCES, "a summary is of a training batch, or of the fixed probe")
        if site is None or quantity not in DERIVED:
            return only(self._scalars(site, quantity), steps)
        if quantity == "internal_share":
            return share(*(self.shift(site, kind=kind, steps=steps) for kind in ("internal", "external")))
        if quantity in SHIFTS:
            return self.shift(site, kind="internal" if quantity == "internal_shift" else "external", steps=steps)
        place = Place.find(self._ranks(), site)
        tensor = place.home(quantity)
        if tensor is None:
            return Series.of(place.tensors[0], quantity, source or "live", [], [])
        source = source or self._source(tensor)
        if quantity == FROM_RATE:
            lengths = only(self.series(tensor, "weight_norm", source=source), steps)
            rates = overlaid(self._scalars(tensor, "learning_rate"), self._scalars(None, "learning_rate"))
            return effective_rate(rates, lengths)
        if quantity in FROM_COLUMNS:
            rows = self.columns(tensor, source)
            return only(Series.of(tensor, quantity, source, rows.steps, FROM_COLUMNS[quantity](rows)), steps)
        told = self.summaries(tensor, source, steps=steps)
        values = [FROM_SUMMARY[quantity](summary, tensor) for _, summary in told]
        return Series.of(tensor, quantity, source, [step for step, _ in told], values)

    def summary(self, site: Site | str, step: int, source: str = "live") -> Summary | None:
        """The summary of a tensor at a step, or None. Raises UnknownNameError for an unknown site."""
        key = self._tensor(site).key
        parts = [part for rank in self._ranks() if (part := rank.summary(key, int(step), source)) is not None]
        return _merged(parts) if parts else None

    def columns(self, tensor: Site, source: str = "live") -> Columns:
        """The numbers of all summaries of a tensor, at once and without their arrays."""
        return Columns.merged([rank.columns(tensor.key, source) for rank in self._ranks()])

    def summaries(self, site: Site | str, source: str = "live", *, steps: Steps = None) -> list[tuple[int, Summary]]:
        """The summaries of a tensor, by step; `steps` as for `series`. Raises UnknownNameError for an unknown site."""
        return self._summaries_at(self._tensor(site), source, self._chosen(self._tensor(site), source, steps))

    def _summaries_at(self, tensor: Site, source: str, steps: list[int] | None) -> list[tuple[int, Summary]]:
        by_step: dict[int, list[Summary]] = {}
        for rank in self._ranks():
            for step, summary in rank.summaries(tensor.key, source, steps):
                by_step.setdefault(step, []).append(summary)
        return [(step, _merged(by_step[step])) for step in sorted(by_step)]

    def catalog(self) -> dict[str, dict[str, set[str]]]:
        """What is stored of every tensor, by its key: `contents` of all of them at once."""
        found: dict[str, dict[str, set[str]]] = {}
        for rank in self._ranks():
            for key, quantity, source in rank.catalog():
                found.setdefault(key, {}).setdefault(quantity, set()).add(source)
        return found

    def steps_of(self, source: str) -> np.ndarray:
        """The steps at which anything of a source was recorded, int64, ascending."""
        return np.unique(np.concatenate([rank.steps_with(source) for rank in self._ranks()])).astype(np.int64)

    def grid(self, source: str = "live", steps: Steps = None) -> Grid:
        """The numbers of the summaries of every tensor at once, without their arrays; `steps` as for `series`."""
        return Grid.read(self._ranks(), source, np.array(self._chosen_of(source, steps), dtype=np.int64))

    def excerpt(self, source: str = "live", steps: Steps = None) -> Excerpt:
        """The summaries of every tensor at some steps, each decoded when it is asked for; `steps` as for `series`."""
        return Excerpt.read(self._ranks(), source, self._chosen_of(source, steps))

    def scalars(self, quantity: str) -> dict[str, Series]:
        """A stored number of every tensor that has it, by the tensor's key; empty where none has.

        ``update_ratio`` is derived from summaries where there are any, at `MOST` steps at most.
        """
        ranks = self._ranks()
        having = "row.id IN (SELECT site FROM contents WHERE quantity = ?)"
        sites = {key: site for rank in reversed(ranks) for key, site in rank.sites(having, quantity).items()}
        told = scalars_by_site(ranks, quantity)
        stored = {key: Series.of(sites[key], quantity, "", *told[key]) for key in told if key in sites}
        return {**stored, **self._ratios()} if quantity == "update_ratio" else stored

    def _ratios(self) -> dict[str, Series]:
        grid = self.grid("live", MOST)
        told = {site.key: ratio_of(site, grid.columns) for site in self.sites if site.what == "update"}
        return {key: series for key, series in told.items() if len(series)}

    def nonfinite(self) -> list[Broken]:
        """Every summary of a tensor that held NaN or infinity, in no order."""
        return broken(self._ranks(), {site.key: site for site in self.sites})

    def shift(
        self,
        site: Site | str,
        *,
        distance: str = "shift",
        against: Literal["previous", "start"] = "previous",
        kind: Literal["internal", "external"] = "internal",
        per_channel: bool = False,
        steps: Steps = None,
    ) -> Series:
        """How far the distribution of a tensor has moved.

        Internal: the probe now against the probe at the previous probed step, or at the first one (`against`), so the
        parameters alone differ. External: the training batch against the probe at the same step, so the data alone
        differ.

        Args:
            site: a site, its key, or a module path (its output).
            distance: a name of `normscope.stats.DISTANCES`; ``shift``, ``mean_shift`` and ``std_shift`` are in standard
                deviations of the reference.
            per_channel: for a distance of `normscope.stats.PER_CHANNEL`, one value for each channel, (T, C); steps
                without channels are left out. Training batches are summarized without channels, so internally only.
                Of more than 512 channels ``shift``, ``wasserstein1``, ``jensen_shannon`` and ``psi`` know every k-th.
            steps: only these steps, as for `series`; each is still compared with the probe before it.

        Raises:
            UnknownNameError: no such site, distance, kind or reference.
        """
        known = PER_CHANNEL if per_channel else DISTANCES
        if distance not in known:
            raise unknown("distance", distance, tuple(known), "distances between summaries are a closed list")
        if against not in ("previous", "start"):
            raise unknown("reference", against, ("previous", "start"), "a probe is compared with an earlier probe")
        if kind not in ("internal", "external"):
            raise unknown("kind of shift", kind, ("internal", "external"), "parameters move a layer, or data do")
        tensor = self._tensor(site)
        pairs = self._pairs(tensor, kind, against, steps)
        source = "probe" if kind == "internal" else "live"
        if per_channel:
            told = [(s, PER_CHANNEL[distance](now, then)) for s, now, then in pairs]
            there = [(s, channels) for s, channels in told if channels is not None]
            return Series.of(tensor, f"{kind}_shift", source, [s for s, _ in there], [each for _, each in there])
        values = [DISTANCES[distance](now, then) for _, now, then in pairs]
        return Series.of(tensor, f"{kind}_shift", source, [s for s, _, _ in pairs], values)

    def _pairs(self, tensor: Site, kind: str, against: str, steps: Steps) -> list[tuple[int, Summary, Summary]]:
        """Each step with what is compared there: now, and the reference."""
        probed = self._chosen(tensor, "probe", slice(None)) or []
        if kind == "external":
            chosen = self._chosen(tensor, "live", probed if steps is None else steps)
            references = dict(self._summaries_at(tensor, "probe", chosen))
            return [(s, now, references[s]) for s, now in self._summaries_at(tensor, "live", chosen) if s in references]
        before = dict(zip(probed[1:], probed if against == "previous" else probed[:1] * len(probed)))
        chosen = [step for step in selected(probed, steps) if step in before]
        told = dict(self._summaries_at(tensor, "probe", sorted({*chosen, *(before[step] for step in chosen)})))
        return [(step, told[step], told[before[step]]) for step in chosen if step in told and before[step] in told]

    def _chosen_of(self, source: str, steps: Steps) -> list[int]:
        """The steps to read of all tensors; those that were named need not be there."""
        if steps is None or isinstance(steps, int | slice):
            return selected(self.steps_of(source).tolist(), steps)
        return sorted({int(step) for step in steps})

    def _chosen(self, tensor: Site, source: str, steps: Steps) -> list[int] | None:
        """The steps to read; None for all of them, where nobody needs to know which."""
        if steps is None:
            return None
        there = {step for rank in self._ranks() for step in rank.steps_of(tensor.key, source)}
        return selected(sorted(there), steps)

    def describe(self) -> str:
        """The record in a few lines: where, how much, whether complete."""
        steps, events = self.steps, self.events
        span = f"{len(steps)} sampled steps" + (f", {steps[0]} to {steps[-1]}" if len(steps) else "")
        kinds = sorted({event.kind for event in events})
        ranks = self._ranks()
        lines = [
            f"record    {self.path}, {self.state}",
            f"steps     {span}",
            f"sites     {len(self.sites)}, with {sum(rank.count() for rank in ranks)} summaries",
            f"scalars   {', '.join(self.quantities(None)) or 'none'}",
            f"events    {len(events)}" + (f" ({', '.join(kinds)})" if kinds else ""),
            f"ranks     {', '.join(str(rank.rank) for rank in ranks)}",
        ]
        return "\n".join(lines)

    def to_numpy(self, **what: Any) -> dict[str, np.ndarray]:
        """The measurements as columns of equal length, one row a value; the arguments are those of `table.columns`.

        The columns are ``step``, ``site`` (the key; empty for the whole run), ``path``, ``what``, ``depth``,
        ``quantity``, ``source`` and ``value``. Wanted are ``sites``, ``quantities`` and ``steps``; all when left out.
        """
        return table.columns(self, **what)

    def to_pandas(self, **what: Any) -> Any:
        """`to_numpy` as a `pandas.DataFrame`. Raises MissingExtraError without the extra ``data``."""
        return table.pandas(self, **what)

    def to_arrow(self, **what: Any) -> Any:
        """`to_numpy` as a `pyarrow.Table`. Raises MissingExtraError without the extra ``data``."""
        return table.arrow(self, **what)

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
        return f"Record({str(self.path)!r}: {len(self.sites)} sites, {len(self.steps)} sampled steps, {self.state})"

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
        if quantity == "update_ratio" and tensor is not None and len(ratios := ratio_of(tensor, self.columns)):
            return ratios
        steps, values = averaged([rank.scalars(tensor.key if tensor else "", quantity) for rank in ranks])
        if not len(steps):
            self._check_known(quantity, STORED if site is None else (*STORED, *DERIVED))
        return Series.of(tensor, quantity, "", steps, values)

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
