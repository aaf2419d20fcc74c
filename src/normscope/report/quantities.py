"""How each quantity of a record is shown: as a share, over decades, or around zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType

from normscope.report.parts import Axis, Values
from normscope.report.words import Words

DECADES = 300.0  # from this ratio of largest to smallest on, a linear axis hides the small values


@dataclass(frozen=True)
class Look:
    """`share` is shown as percent; `signed` has a meaningful zero with values on both sides."""

    share: bool = False
    signed: bool = False


# In the order in which a reader meets them: what hurts first.
LOOKS: Mapping[str, Look] = MappingProxyType(
    {
        "gradient_norm": Look(),
        "saturated": Look(share=True),
        "dead": Look(share=True),
        "std": Look(),
        "mean": Look(signed=True),
        "internal_shift": Look(),
        "external_shift": Look(),
        "eval_gap": Look(),
        "running_stat_error": Look(),
        "update_ratio": Look(),
        "saturated_units": Look(share=True),
        "collapsed_channels": Look(share=True),
        "entropy": Look(share=True),
        "internal_share": Look(share=True),
        "nonfinite": Look(share=True),
        "zeros": Look(share=True),
        "min": Look(signed=True),
        "max": Look(signed=True),
    }
)


def look(quantity: str) -> Look:
    """How `quantity` is shown; one that is not listed is a plain number."""
    return LOOKS.get(quantity, Look())


def ordered(quantities: Iterable[str]) -> tuple[str, ...]:
    """The listed quantities in their order, then the others by name."""
    places = {name: place for place, name in enumerate(LOOKS)}
    return tuple(sorted(set(quantities), key=lambda name: (places.get(name, len(places)), name)))


def title(quantity: str, words: Words) -> str:
    """The name of a quantity at the head of a sentence."""
    name = words.named("quantity", quantity).replace("_", " ")
    return name[:1].upper() + name[1:]


def axis(quantity: str, values: Sequence[Values], words: Words) -> Axis:
    """The axis for `values` of a quantity: its name with its unit; over decades where they span many."""
    name = words.named("quantity", quantity).replace("_", " ")
    if f"unit.{quantity}" in words:
        name = words("axis", quantity=name, unit=words(f"unit.{quantity}"))
    known = [value for row in values for value in row if value is not None]
    if look(quantity).signed and known and min(known) < 0 < max(known):
        sizes = [abs(value) for value in known]
        return Axis(name, log=reaches_far(max(sizes), median(sizes)), signed=True)
    return Axis(name, share=look(quantity).share, log=not look(quantity).share and spans_decades(values))


def spans_decades(values: Sequence[Values]) -> bool:
    """Whether no value is below zero and those above it reach over more than `DECADES`."""
    known = [value for row in values for value in row if value is not None]
    positive = [value for value in known if value > 0]
    return bool(positive) and min(known) >= 0 and max(positive) / min(positive) > DECADES


def reaches_far(outer: float, inner: float) -> bool:
    """Whether values around zero, up to a size of `outer`, need decades for those of size `inner` to be seen."""
    return outer > 10 * max(inner, 1.0)


def zeros(values: Iterable[Values], shown: Axis, words: Words) -> str:
    """Zeros have no place on a logarithmic axis; that they are there must be said."""
    n = sum(value == 0 for row in values for value in row) if shown.log and not shown.signed else 0
    return words.counted("zeros", n) if n else ""
