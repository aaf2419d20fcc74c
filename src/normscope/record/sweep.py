"""`Sweep`: a record read for all its tensors at once, at some of its steps.

`Record` answers for one tensor, from every step, with what was last flushed. A sweep is for who asks about every
tensor: it puts as many questions to the file for a thousand layers as for two, and keeps the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from normscope.record.grid import Excerpt, Grid
from normscope.record.places import Place
from normscope.record.quantities import DERIVED, FROM_COLUMNS, FROM_RATE, FROM_SUMMARY, SHIFTS
from normscope.record.reader import Record
from normscope.record.rows import SOURCES
from normscope.record.series import Series, effective_rate, overlaid, share
from normscope.stats.distance import DISTANCES
from normscope.stats.summary import Summary
from normscope.terms.site import Site


class Sweep:
    """The tensors of a record and what is known of them. What the record does not hold gives an empty series.

    Args:
        record: the run.
        numbers: at how many steps of a source the numbers of summaries are read.
        whole: at how many steps whole summaries are read, and distances taken between them.
        choose: which of the steps are read, at most so many.
    """

    def __init__(
        self,
        record: Record,
        *,
        numbers: int,
        whole: int,
        choose: Callable[[np.ndarray, int], Sequence[int] | np.ndarray],
    ) -> None:
        self.record = record
        self._sizes = {"numbers": numbers, "whole": whole}
        self._choose = choose
        self._grids: dict[str, Grid] = {}
        self._excerpts: dict[tuple[str, tuple[int, ...]], Excerpt] = {}
        self._scalars: dict[str, dict[str, Series]] = {}
        self._whole_run: dict[str, Series] = {}
        self._shifts: dict[tuple[str, str], Series] = {}
        self._all_steps: dict[str, np.ndarray] = {}
        self._chosen: dict[tuple[str, str], tuple[int, ...]] = {}

    @cached_property
    def tensors(self) -> dict[str, Site]:
        """Every tensor that was recorded, by key, in execution order."""
        return {site.key: site for site in self.record.sites}

    @cached_property
    def steps(self) -> np.ndarray:
        """The sampled steps, int64, ascending."""
        return self.record.steps

    def all_steps(self, source: str) -> np.ndarray:
        """The steps of a source, all of them; the fixed batch runs in both modes at the same steps."""
        source = "probe" if source.startswith("probe") else source
        if source not in self._all_steps:
            self._all_steps[source] = self.steps if source == "live" else self.record.steps_of(source)
        return self._all_steps[source]

    def sampled(self, source: str, what: str = "whole") -> tuple[int, ...]:
        """The steps that are read of a source: of ``"numbers"``, or of ``"whole"`` summaries."""
        if (source, what) not in self._chosen:
            chosen = self._choose(self.all_steps(source), self._sizes[what])
            self._chosen[source, what] = tuple(int(step) for step in chosen)
        return self._chosen[source, what]

    def quantities(self, site: Site) -> tuple[str, ...]:
        """What `series` can tell of a site."""
        place = self._place(site)
        stored = {name for tensor in place.tensors for name in self._contents.get(tensor.key, ())} - {""}
        derived = []
        for name in DERIVED:
            home = place.home(name)
            sources = self._sources(home) if home else set()
            if sources and SHIFTS.get(name, set()) <= sources:
                derived.append(name)
        return (*derived, *sorted(stored))

    def series(self, site: Site | str | None, quantity: str, source: str | None = None) -> Series:
        """One quantity at one site, as `Record.series` has it, at the steps that are read."""
        if site is None:
            return self._of_run(quantity)
        place = self._place(Site.parse(site) if isinstance(site, str) else site)
        if quantity not in DERIVED:
            return self._stored(place, quantity)
        tensor = (place.home("") or next(iter(place.tensors), None)) if quantity in SHIFTS else place.home(quantity)
        if tensor is None:
            return Series.of(None, quantity, source or "live", [], [])
        if quantity == "internal_share":
            return share(self._shift(tensor, "internal"), self._shift(tensor, "external"))
        if quantity in SHIFTS:
            return self._shift(tensor, quantity.partition("_")[0])
        source = source or next((one for one in SOURCES if one in self._sources(tensor)), SOURCES[0])
        if quantity == FROM_RATE:
            rates = overlaid(self._stored(self._place(tensor), "learning_rate"), self.series(None, "learning_rate"))
            return effective_rate(rates, self.series(tensor, "weight_norm", source))
        if quantity in FROM_COLUMNS:
            return self._grid(source).series(tensor, quantity)
        told = self.summaries(tensor, source)
        values = [FROM_SUMMARY[quantity](summary, tensor) for _, summary in told]
        return Series.of(tensor, quantity, source, [step for step, _ in told], values)

    def summary(self, tensor: Site, step: int, source: str) -> Summary | None:
        """The summary of a tensor at one of the `sampled` steps; None where there is none."""
        return self._excerpt(source, self.sampled(source)).summary(tensor, step)

    def summaries(self, tensor: Site, source: str) -> list[tuple[int, Summary]]:
        """The summaries of a tensor, by step."""
        steps = self.sampled(source)
        told = ((step, self._excerpt(source, steps).summary(tensor, step)) for step in steps)
        return [(step, summary) for step, summary in told if summary is not None]

    def _of_run(self, quantity: str) -> Series:
        if quantity not in self._whole_run:
            there = quantity in self.record.quantities(None)
            none = Series.of(None, quantity, "", [], [])
            self._whole_run[quantity] = self.record.series(None, quantity) if there else none
        return self._whole_run[quantity]

    def _stored(self, place: Place, quantity: str) -> Series:
        if quantity not in self._scalars:
            self._scalars[quantity] = self.record.scalars(quantity)
        known = self._scalars[quantity]
        found = (known[tensor.key] for tensor in place.tensors if tensor.key in known)
        return next(found, Series.of(place.named, quantity, "", [], []))

    def _shift(self, tensor: Site, kind: str) -> Series:
        """The distance of each probe from the one before it, or of the training batch from the probe at its step."""
        if (tensor.key, kind) not in self._shifts:
            self._shifts[tensor.key, kind] = self._measured(tensor, kind)
        return self._shifts[tensor.key, kind]

    def _measured(self, tensor: Site, kind: str) -> Series:
        steps, every = self.sampled("probe"), self.all_steps("probe").tolist()
        before = dict(zip(every[1:], every)) if kind == "internal" else dict(zip(every, every))
        pairs = [(before[step], step) for step in steps if step in before]
        read = tuple(sorted({step for pair in pairs for step in pair}))
        source = "probe" if kind == "internal" else "live"
        then, now = self._excerpt("probe", read), self._excerpt(source, read)
        told = [(step, now.summary(tensor, step), then.summary(tensor, earlier)) for earlier, step in pairs]
        known = [(step, DISTANCES["shift"](new, old)) for step, new, old in told if new is not None and old is not None]
        return Series.of(tensor, f"{kind}_shift", source, [step for step, _ in known], [value for _, value in known])

    def _grid(self, source: str) -> Grid:
        if source not in self._grids:
            self._grids[source] = self.record.grid(source, self.sampled(source, "numbers"))
        return self._grids[source]

    def _excerpt(self, source: str, steps: tuple[int, ...]) -> Excerpt:
        if (source, steps) not in self._excerpts:
            self._excerpts[source, steps] = self.record.excerpt(source, steps)
        return self._excerpts[source, steps]

    def _place(self, site: Site) -> Place:
        near = [one for one in self._modules.get((site.path, site.call), ()) if one.key != site.key]
        exact = [self.tensors[site.key]] if site.key in self.tensors else []
        return Place(site, (*exact, *(one for one in near if site.name in ("", one.name))))

    def _sources(self, tensor: Site) -> set[str]:
        return self._contents.get(tensor.key, {}).get("", set())

    @cached_property
    def _contents(self) -> dict[str, dict[str, set[str]]]:
        return self.record.catalog()

    @cached_property
    def _modules(self) -> dict[tuple[str, int], list[Site]]:
        found: dict[tuple[str, int], list[Site]] = {}
        for site in self.tensors.values():
            found.setdefault((site.path, site.call), []).append(site)
        return found
