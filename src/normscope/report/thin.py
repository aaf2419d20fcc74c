"""Showing less than was recorded, evenly: a page must open on a phone, whatever the size of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from normscope.report.parts import Values

T = TypeVar("T")

SITES = 60  # rows of a chart over depth
CARD_SITES = 24  # the same beside a finding
STEPS = 120  # columns of a chart over steps
DISTRIBUTIONS = 60  # the same of one that needs whole distributions, or distances between them
LAYERS = 120  # layers to choose from for a distribution
CURVES = 6  # lines in one chart


def thin(items: Sequence[T], limit: int, keep: Callable[[T], bool] = lambda item: False) -> tuple[T, ...]:
    """At most `limit` of `items` in their order: those to `keep`, and others evenly spaced from the first to the last.

    >>> thin(range(10), 4)
    (0, 3, 6, 9)
    >>> thin(range(10), 4, keep=lambda item: item == 1)
    (0, 1, 5, 9)
    """
    if len(items) <= limit:
        return tuple(items)
    kept = [place for place, item in enumerate(items) if keep(item)][:limit]
    others = sorted(set(range(len(items))).difference(kept))
    room = limit - len(kept)
    even = {others[round(at * (len(others) - 1) / max(room - 1, 1))] for at in range(room)}
    return tuple(items[place] for place in sorted(even.union(kept)))


def finite(values: Iterable[float]) -> Values:
    """Values with four digits, which is what a chart can show; None for what is not finite.

    >>> finite([1.23456, float("inf")])
    (1.235, None)
    """
    return tuple(float(f"{value:.4g}") if math.isfinite(value) else None for value in values)
