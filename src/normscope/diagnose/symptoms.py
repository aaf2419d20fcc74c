"""What is measured before and after a cause is taken out: one number a symptom, larger is worse, 0 is none.

Symptoms that grow along depth are told in e-folds, so that a share of them is a share of the depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, log, nan
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from normscope.diagnose.layers import starved
from normscope.stats.moments import Moments
from normscope.stats.summary import Summary
from normscope.terms.activations import activation_named
from normscope.terms.site import Site
from normscope.watch.measure import Distribution, Reading

LEAST = 1e-12
"""Below float32's resolution of any sum: what is smaller counts as this much, so that a logarithm can be taken."""


@dataclass(frozen=True)
class Look:
    """What one run of the fixed batch showed, in both modes.

    Attributes:
        sites: the outputs, in execution order.
        summaries: by mode and site key.
        scalars: by site key (``""`` for the model as a whole) and quantity.
        loss: of the fixed batch; NaN where there is none.
    """

    sites: tuple[Site, ...]
    summaries: Mapping[tuple[str, str], Summary] = field(default_factory=dict)
    scalars: Mapping[tuple[str, str], float] = field(default_factory=dict)
    loss: float = nan

    @staticmethod
    def of(sites: Iterable[Site], readings: Iterable[Reading]) -> Look:
        """From what the measures of a fixed batch told."""
        summaries: dict[tuple[str, str], Summary] = {}
        scalars: dict[tuple[str, str], float] = {}
        for reading in readings:
            if isinstance(reading, Distribution):
                summaries[reading.mode, reading.site.key] = reading.summary
            else:
                scalars[reading.site.key if reading.site else "", reading.quantity] = reading.value
        ran = tuple(sorted((site for site in sites if site.depth >= 0), key=lambda site: site.depth))
        return Look(ran, summaries, scalars, scalars.get(("", "probe_loss"), nan))

    def hidden(self) -> Iterator[Site]:
        """The activations with a further layer behind them."""
        last = max((site.depth for site in self.sites if site.role != "activation"), default=-1)
        return (site for site in self.sites if site.role == "activation" and site.depth < last)

    def seen(self, role: str) -> Iterator[tuple[Site, Summary]]:
        """The outputs of a role in training mode, without those that are not finite."""
        for site in self.sites:
            summary = self.summaries.get(("probe", site.key))
            if site.role == role and summary is not None and not summary.sketch.nonfinite:
                yield site, summary


def _saturated(look: Look) -> float:
    """The mean share of saturated pre-activations over the hidden activations of bounded functions."""
    shares = []
    for site in look.hidden():
        function = activation_named(site.kind)
        summary = look.summaries.get(("probe", site.at("input").key))
        if function is not None and function.saturates and summary is not None:
            shares.append(summary.sketch.outside(function.low, function.high))
    return _mean(shares)


def _dead(look: Look) -> float:
    """The mean share of dead units over the hidden activations."""
    return _mean(look.scalars.get((site.key, "dead"), nan) for site in look.hidden())


def _alike(look: Look) -> float:
    """By how many e-folds samples have become alike at the last layer."""
    shares = [variation(summary.channels) for _, summary in look.seen("producer") if summary.channels is not None]
    return -log(max(shares[-1], LEAST)) if shares else nan


def _grown(look: Look) -> float:
    """By how many e-folds the activations of the last layer are larger or smaller than those of the first."""
    sizes = [summary.rms for _, summary in look.seen("producer")]
    return abs(log(max(sizes[-1], LEAST) / max(sizes[0], LEAST))) if len(sizes) > 1 else nan


def _symmetric(look: Look) -> float:
    """The share of the layers before the last whose units all have the same deviation."""
    layers = [summary.channels for _, summary in look.seen("producer")][:-1]
    wide = [one for one in layers if one is not None and one.std.size > 1]
    return _mean(float(np.ptp(one.std) <= 1e-4 * np.sqrt(np.mean(one.var + one.mean**2))) for one in wide)


def _starved(look: Look) -> float:
    """By how many e-folds the first layers get less gradient than those behind them, relative to their output."""
    return -log(max(starved(_relative_gradients(look)), LEAST))


def _flooded(look: Look) -> float:
    """By how many e-folds the first quarter of the layers gets more gradient than the last quarter."""
    column = _relative_gradients(look)
    column = column[np.isfinite(column)]
    quarter = max(1, len(column) // 4)
    if len(column) < 2:
        return nan
    first, last = (max(float(np.median(part)), LEAST) for part in (column[:quarter], column[-quarter:]))
    return max(0.0, log(first / last))


def _relative_gradients(look: Look) -> np.ndarray:
    """‖h‖·‖∂L/∂h‖ of every layer's output h: what the loss moves for a relative change of it."""
    found = []
    for site, summary in look.seen("producer"):
        slope = look.summaries.get(("probe", site.at("gradient").key))
        found.append(summary.rms * slope.rms * summary.size if slope is not None else nan)
    return np.array(found)


def _gap(look: Look) -> float:
    """How far the outputs of both modes lie apart, in deviations."""
    at_root = look.scalars.get((Site("").key, "eval_gap"))
    if at_root is not None:
        return at_root
    return next((look.scalars.get((site.key, "eval_gap"), nan) for site in reversed(look.sites)), nan)


def _off(look: Look) -> float:
    """How far the running statistics lie from those of the batch, in deviations: the worst norm."""
    return max((value for (_, name), value in look.scalars.items() if name == "running_stat_error"), default=nan)


def _broken(look: Look) -> float:
    """The largest share of channels with unusable running statistics in a norm."""
    return max((value for (_, name), value in look.scalars.items() if name == "running_broken"), default=nan)


def _shut(look: Look) -> float:
    """The mean share over the norms of channels that vary by less than a hundredth of the others behind it."""
    channels = [summary.channels for _, summary in look.seen("norm") if summary.channels is not None]
    sizes = [(one.std, float(np.sqrt(np.mean(one.var)))) for one in channels if one.std.size > 1]
    return _mean(float(np.mean(std <= 0.01 * size)) for std, size in sizes)


def _unlike(look: Look) -> float:
    """By how many e-folds the signal dies or explodes along depth, whichever is worse."""
    return max((one for one in (_alike(look), _grown(look)) if isfinite(one)), default=nan)


class Symptom(NamedTuple):
    """A symptom in words, the function that measures it, and the least that counts as being there.

    The least are shares of a tenth, two e-folds (a third of the six at which rules speak) and a tenth of a deviation.
    """

    words: str
    measure: Callable[[Look], float]
    least: float


SYMPTOMS: Mapping[str, Symptom] = MappingProxyType(
    {
        "saturated": Symptom("share of saturated pre-activations", _saturated, 0.1),
        "dead": Symptom("share of dead units", _dead, 0.1),
        "unlike": Symptom("change of the signal along depth in e-folds", _unlike, 2.0),
        "symmetry": Symptom("share of layers whose units are the same", _symmetric, 0.1),
        "running_broken": Symptom("share of unusable running statistics", _broken, 1e-9),
        "shut": Symptom("share of channels that carry nothing behind a norm", _shut, 0.1),
        "starved": Symptom("shortage of gradient in the first layers in e-folds", _starved, 2.0),
        "flooded": Symptom("excess of gradient in the first layers in e-folds", _flooded, 2.0),
        "eval_gap": Symptom("gap between the modes in deviations", _gap, 0.1),
        "running_stat_error": Symptom("error of the running statistics in deviations", _off, 0.1),
    }
)


def variation(channels: Moments) -> float:
    """The deviation between samples over the root mean square: √(1 − correlation), averaged over pairs."""
    energy = float(np.mean(channels.var + channels.mean**2))
    return (float(np.mean(channels.var)) / energy) ** 0.5 if energy > 0 else 0.0


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if isfinite(value) and value != inf]
    return float(np.mean(known)) if known else nan
