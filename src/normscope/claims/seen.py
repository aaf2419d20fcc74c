"""What claims read in the record of a watched training: the pre-activations of each layer, unit by unit."""

from __future__ import annotations

import numpy as np

from normscope.record.reader import Record
from normscope.stats.summary import Summary
from normscope.terms.site import Site


def pre_activations(record: Record) -> list[Site]:
    """The input of every activation function, first layer first."""
    return [site for site in record.sites if site.role == "activation" and site.what == "input"]


def on_probe(record: Record, site: Site) -> list[Summary]:
    """The summaries of the fixed batch at a site, oldest first."""
    return [summary for _, summary in record.summaries(site, "probe")]


def unit_shift(now: Summary, then: Summary) -> float:
    """The mean over units of |Δmean| by the unit's earlier deviation (unbiased), without units that were constant."""
    new, old = now.channels, then.channels
    if new is None or old is None:
        return float("nan")
    deviation = np.sqrt(old.m2 / (old.count - 1))
    moved = np.abs(new.mean - old.mean)[deviation > 0] / deviation[deviation > 0]
    return float(moved.mean()) if len(moved) else float("nan")


def shifts(record: Record) -> list[float]:
    """How far the units of each layer's pre-activations moved from the first to the last look."""
    looks = [on_probe(record, site) for site in pre_activations(record)]
    return [unit_shift(look[-1], look[0]) for look in looks]


def saturated(record: Record) -> list[tuple[float, float]]:
    """The saturated share of each layer's pre-activations at the first and at the last look."""
    series = [record.series(site, "saturated", source="probe").values for site in pre_activations(record)]
    return [(float(row[0]), float(row[-1])) for row in series]
