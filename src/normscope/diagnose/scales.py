"""How the weights of a run were drawn, against what theory expects of each layer: read off the first sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from normscope.diagnose.case import Case
from normscope.stats.summary import Summary
from normscope.terms.site import Site

_GATES = {"LSTM": 4, "GRU": 3, "LSTMCell": 4, "GRUCell": 3}
_TABLES = ("Embedding", "EmbeddingBag", "Parameter")
_INSIDE = ("weight_hh", "weight_ih", "in_proj")
TABLE = 64
"""Numbers from which a parameter that no layer holds counts as a table, and not as a scale or a temperature."""

FEWEST = 16
"""Weights below which their mean says little: that of sixteen lies within a half of their deviation."""


class Drawn(NamedTuple):
    """The weights of one layer as they were drawn.

    Attributes:
        site: the layer's output.
        name: of the parameter.
        low: what the layer multiplies the deviation of a centred signal by, forward or backward, whichever is less:
            the root mean square of its weights times √(inputs of a unit) or √(units that an input reaches).
        high: whichever is more.
        common: what it multiplies the part that its inputs have in common by, over what it does to the rest:
            |mean| √(units) / deviation.
        normed: whether a norm stands right behind, to which the scale of the layer is nothing.
    """

    site: Site
    name: str
    low: float
    high: float
    common: float
    normed: bool

    @property
    def recurrent(self) -> bool:
        """Whether the weights are applied again at every position of a sequence."""
        return "weight_hh" in self.name

    @property
    def table(self) -> bool:
        """Whether rows are looked up, instead of multiplied."""
        return self.site.kind in _TABLES


def drawn(case: Case) -> Iterator[Drawn]:
    """Every trained matrix and kernel of more than a few weights that are not all the same, in execution order.

    Behind them, tables that no layer holds, such as embeddings of positions.
    """
    for site in case.producers:
        for weight in () if site.call else case.parameters(site.path):
            if "weight" not in weight.name or "original" in weight.name or (told := _first(case, weight)) is None:
                continue
            size, moments = told.size, told.moments
            units, inputs = _units(case, site, weight.name), case.channels(site.at("input"))
            if "weight_hh" in weight.name:  # what a layer gives goes in again
                inputs = units // _GATES.get(site.kind, 1)
            rms, std = told.rms, told.std
            if size < FEWEST or not units or not std > 1e-4 * rms or (site.kind not in _TABLES and size % units):
                continue
            normed = not weight.name.startswith(_INSIDE) and _norm_behind(case, site)
            fans = (1.0, 1.0) if site.kind in _TABLES else (size / units, size / inputs if inputs else size / units)
            common = abs(float(np.ravel(moments.mean)[0])) * units**0.5 / std
            yield Drawn(site, weight.name, rms * min(fans) ** 0.5, rms * max(fans) ** 0.5, common, normed)

    held = {site.path for site in (*case.producers, *case.norms)}
    for one in case.tensors.values():
        told = _first(case, one) if one.what == "parameter" and one.path not in held else None
        if told is not None and told.size >= TABLE:
            yield Drawn(replace(one, kind="Parameter"), one.name, told.rms, told.rms, 0.0, normed=False)


def _first(case: Case, tensor: Site, source: str = "live") -> Summary | None:
    """The first summary of a tensor, where it is finite."""
    told = (case.summary(tensor, step, source) for step in case.sampled(source)[:2])
    return next((one for one in told if one is not None and not one.sketch.nonfinite), None)


def _units(case: Case, site: Site, name: str) -> int:
    """The rows of a weight: the units of the layer, for each gate and each of queries, keys and values."""
    units = case.channels(site)
    if any("_reverse" in one.name for one in case.parameters(site.path)):
        units //= 2
    return units * _GATES.get(site.kind, 1) * (3 if name == "in_proj_weight" else 1)


def _norm_behind(case: Case, site: Site) -> bool:
    """Whether the next site is a norm that reads the output as it is, with nothing added on the way."""
    behind = next((one for one in case.sites if one.depth > site.depth), None)
    if behind is None or behind.role != "norm":
        return False
    given, read = (_first(case, one, "probe") for one in (site, behind.at("input")))
    return given is not None and read is not None and bool(np.isclose(given.rms, read.rms, rtol=1e-6))
