"""`Run`: a run as its record tells it. What is asked of one tensor is read of all at once, and kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from normscope.diagnose.track import Track
from normscope.record.reader import Record
from normscope.record.sweep import Sweep
from normscope.stats.summary import Summary
from normscope.terms.datum import Datum
from normscope.terms.errors import UnknownNameError
from normscope.terms.site import Site

SAMPLES = 16
"""Whole summaries are read at this many steps of a run, first and last ones among them: enough to see what lasts."""

NUMBERS = 256
"""The numbers of summaries are read at this many steps: half of what a record takes in one doubling of its length."""


@dataclass(frozen=True, repr=False, eq=False)
class Run(Datum):
    """The sites of a run, and its quantities as tracks: one number over the steps.

    What the record does not hold gives an empty track: nothing raises for want of data.
    """

    record: Record = field(repr=False)
    _tracks: dict[tuple[str, str, str], Track] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def steps(self) -> np.ndarray:
        """The sampled steps, int64, ascending."""
        return self._sweep.steps

    @cached_property
    def tensors(self) -> dict[str, Site]:
        """Every tensor that was recorded, by key, in execution order."""
        return self._sweep.tensors

    def sampled(self, source: str) -> tuple[int, ...]:
        """The steps at which whole summaries of a source are read."""
        return self._sweep.sampled(source)

    def scalar(self, site: Site | None, quantity: str) -> Track:
        """A number that the watcher stored for a site or another tensor of its module, or for the whole run."""
        return self._track(site, quantity, "")

    def over(self, tensor: Site, quantity: str, source: str = "live") -> Track:
        """A quantity that is derived from the summaries of one tensor, at up to `NUMBERS` steps of one source."""
        return self._track(tensor, quantity, source)

    def root_mean_square(self, tensor: Site, source: str = "live") -> Track:
        """The root mean square of a tensor over the steps."""
        mean, std = (self.over(tensor, quantity, source) for quantity in ("mean", "std"))
        return Track.of(mean.steps, np.hypot(mean.values, std.values)) if len(mean) == len(std) else mean

    def summaries(self, tensor: Site, source: str | None = None) -> list[tuple[int, Summary]]:
        """Up to `SAMPLES` summaries of a tensor, by step: of the probe where there are any, else of live batches.

        Those with NaN or infinity are left out: what they say is `nonfinite_values`' to tell.
        """
        for one in (source,) if source else ("probe", "live"):
            told = self._sweep.summaries(tensor, one)
            if told:
                return [(step, summary) for step, summary in told if not summary.sketch.nonfinite]
        return []

    def summary(self, tensor: Site, step: int, source: str) -> Summary | None:
        """The summary of a tensor at one of the `sampled` steps; None where there is none."""
        return self._sweep.summary(tensor, step, source)

    def newest(self, tensor: Site, source: str) -> Summary | None:
        """The newest summary of a tensor."""
        told = (self.summary(tensor, step, source) for step in reversed(self.sampled(source)))
        return next((summary for summary in told if summary is not None), None)

    def parameters(self, path: str) -> tuple[Site, ...]:
        """The trainable parameters of a module."""
        return tuple(self._parameters.get(path, ()))

    def depth_of(self, place: str) -> int | None:
        """The place in execution order of a module path or site key; None when it did not run."""
        try:
            path = Site.parse(place).path
        except UnknownNameError:
            return None
        return self._depths.get(path)

    def _track(self, site: Site | None, quantity: str, source: str) -> Track:
        asked = site.key if site is not None else "", quantity, source
        if asked not in self._tracks:
            series = self._sweep.series(site, quantity, source or None)
            self._tracks[asked] = Track.of(series.steps, series.values)
        return self._tracks[asked]

    @cached_property
    def _sweep(self) -> Sweep:
        return Sweep(self.record, numbers=NUMBERS, whole=SAMPLES, choose=spread)

    @cached_property
    def _parameters(self) -> dict[str, list[Site]]:
        found: dict[str, list[Site]] = {}
        for site in self.tensors.values():
            if site.what == "parameter":
                for path in (site.path, *site.aliases):
                    found.setdefault(path, []).append(site)
        return found

    @cached_property
    def _depths(self) -> dict[str, int]:
        depths: dict[str, int] = {}
        for site in self.tensors.values():
            if site.depth >= 0:
                depths.setdefault(site.path, site.depth)
        return depths


def spread(steps: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the steps: the last three, and the rest evenly from the first on."""
    if len(steps) <= count:
        return steps
    early = np.linspace(0, len(steps) - 4, count - 3).round().astype(int)
    return steps[np.unique([*early, *range(len(steps) - 3, len(steps))])]
