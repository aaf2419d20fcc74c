"""A record as it stands when the report begins: every place and every series is read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from normscope.record.reader import Record
from normscope.record.series import Series
from normscope.record.sweep import Sweep
from normscope.report.parts import Values
from normscope.report.thin import DISTRIBUTIONS, STEPS, finite, thin
from normscope.stats.summary import Summary
from normscope.terms.errors import UnknownNameError
from normscope.terms.site import Site


@dataclass(frozen=True)
class Reading:
    """One quantity at one place over the steps, and of which source; None where it was not finite.

    `every` is at how many steps the record has it, of which `steps` may be a part.
    """

    label: str
    depth: int
    source: str
    steps: tuple[int, ...]
    values: Values
    every: int = 0

    @cached_property
    def known(self) -> tuple[tuple[int, float], ...]:
        """The steps with a finite value."""
        return tuple((step, value) for step, value in zip(self.steps, self.values) if value is not None)

    def thinned(self, limit: int) -> Reading:
        """At most `limit` of the steps."""
        at = thin(range(len(self.steps)), limit)
        steps, values = tuple(self.steps[place] for place in at), tuple(self.values[place] for place in at)
        return Reading(self.label, self.depth, self.source, steps, values, self.every)


class Snapshot:
    """What the report reads of `record`, as much as a page can show; of a model at rest, which has none, nothing."""

    def __init__(self, record: Record | None) -> None:
        self.record = record
        self._readings: dict[tuple[str, str], Reading] = {}

    @cached_property
    def _sweep(self) -> Sweep | None:
        if self.record is None:
            return None
        return Sweep(self.record, numbers=STEPS, whole=DISTRIBUTIONS, choose=_evenly)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every tensor, in execution order; those that were never seen to run come last."""
        sites = () if self._sweep is None else self._sweep.tensors.values()
        return tuple(sorted(sites, key=lambda site: (site.depth < 0, site.depth, site.call, site.name)))

    @cached_property
    def places(self) -> tuple[Site, ...]:
        """One tensor for each call of a module, its output where that was recorded, in execution order."""
        chosen: dict[tuple[str, int], Site] = {}
        for site in sorted(self.sites, key=lambda site: (site.what != "output", bool(site.name))):
            chosen.setdefault((site.path, site.call), site)
        order = {site.key: place for place, site in enumerate(self.sites)}
        return tuple(sorted(chosen.values(), key=lambda site: order[site.key]))

    @cached_property
    def layers(self) -> tuple[Site, ...]:
        """The output of every norm, producer and activation, in execution order."""
        return tuple(site for site in self.places if site.what == "output" and site.role != "other")

    @cached_property
    def carriers(self) -> Mapping[str, tuple[Site, ...]]:
        """For each quantity the places that have it, in execution order."""
        found: dict[str, list[Site]] = {}
        for site in self.places:
            for quantity in self._sweep.quantities(site) if self._sweep is not None else ():
                found.setdefault(quantity, []).append(site)
        return {quantity: _telling(quantity, tuple(sites)) for quantity, sites in found.items()}

    @cached_property
    def _labels(self) -> dict[str, str]:
        return {site.key: label(site) for site in self.sites}

    def label(self, key: str) -> str:
        """The place of a site's key, or of a module's path, as people say it."""
        try:
            site = Site.parse(key)
        except UnknownNameError:
            return key
        return self._labels.get(site.key) or label(site)

    def at(self, key: str) -> Site | None:
        """The site of that key, or the place of that path."""
        return next((site for site in (*self.sites, *self.places) if key in (site.key, site.path)), None)

    def reading(self, site: Site | str | None, quantity: str) -> Reading:
        """One quantity at one site over the steps; without steps where the record has none."""
        key = site.key if isinstance(site, Site) else site or ""
        if (key, quantity) not in self._readings:
            self._readings[key, quantity] = self._read(site, quantity)
        return self._readings[key, quantity]

    def _read(self, site: Site | str | None, quantity: str) -> Reading:
        nothing = Reading("", -1, "", (), ())
        if self._sweep is None:
            return nothing
        try:
            series = self._sweep.series(site, quantity)
        except UnknownNameError:  # a finding's own name for a place
            return nothing
        if np.ndim(series.values) != 1:
            return nothing
        named = series.site
        place = (label(named), named.depth) if named else ("", -1)
        steps = tuple(series.steps.tolist())
        return Reading(*place, series.source, steps, finite(series.values.tolist()), self._every(series))

    def _every(self, series: Series) -> int:
        """At how many steps the record has a series: all of its source where some were left out, else those it has."""
        if self._sweep is None or not series.source:
            return len(series)
        there, read = len(self._sweep.all_steps(series.source)), len(self._sweep.sampled(series.source, "numbers"))
        return there if there > read else len(series)

    def summaries(self, site: Site) -> list[tuple[int, Summary]]:
        """The summaries of a tensor, all from one source, at up to `DISTRIBUTIONS` steps."""
        return [] if self._sweep is None else self._sweep.summaries(site, self.reading(site, "mean").source)


def _evenly(steps: np.ndarray, most: int) -> Sequence[int]:
    return thin(steps.tolist(), most)


def label(site: Site) -> str:
    """A place as people say it: with the parameter where there is one, with the kind where the name is but a number."""
    place = site.place + (f"@{site.name}" if site.name else "")
    return f"{place} {site.kind}" if site.kind and site.path.rpartition(".")[2].isdigit() else place


def _telling(quantity: str, sites: tuple[Site, ...]) -> tuple[Site, ...]:
    """The sites without those that only say it again: a container its last layer, a producer its activation."""
    wanted = ("activation",) if quantity == "saturated" else ("norm", "producer", "activation")
    return tuple(site for site in sites if site.role in wanted) or sites
