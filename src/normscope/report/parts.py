"""The parts that a report is made of: frozen data that say what to show and nothing of how it is painted.

A painter (`html`, `terminal`) knows every part; whoever builds a report knows no painter. Text is plain: words between
backticks are code, everything else is shown as it stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from normscope.terms.finding import Severity

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

FIRST = 6  # names of a list that are seen at once
Values = tuple[float | None, ...]  # None where nothing finite was measured


def visible(text: str) -> str:
    r"""`text` with a mark in place of what drives a terminal, turns the reading direction or is no character.

    >>> visible("red: \x1b[31m")
    'red: �[31m'
    """
    return _UNSEEN.sub("\ufffd", text)


class Part:
    """Anything that can be painted."""

    __slots__ = ()


class Chart(Part):
    """A part that draws numbers. Its `title` is a sentence that says what one sees; `note` says what was left out."""

    __slots__ = ()

    title: str
    note: str


@dataclass(frozen=True)
class Paragraph(Part):
    """Running text; `quiet` for what only a careful reader needs; `lang` where it is not in the page's language."""

    text: str
    quiet: bool = False
    lang: str = ""


@dataclass(frozen=True)
class Code(Part):
    """Lines to type."""

    text: str


@dataclass(frozen=True)
class Facts(Part):
    """Names with their values; `headline` when they are the first thing to read."""

    rows: tuple[tuple[str, str], ...]
    headline: bool = False


@dataclass(frozen=True)
class Table(Part):
    """Rows of text under column heads; the columns in `numeric` are aligned to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()


@dataclass(frozen=True)
class Names(Part):
    """A list of code names: the `FIRST` of them at once, the rest on demand."""

    label: str
    names: tuple[str, ...]
    more: str = ""


@dataclass(frozen=True)
class Labelled(Part):
    """Parts under a small heading."""

    label: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Row(Part):
    """Parts side by side where there is room, the first one wider."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Card(Part):
    """One finding, or one claim. `links` are (label, anchor on this page)."""

    anchor: str
    severity: Severity | Literal["good"]
    tag: str
    code: str
    heading: str
    aside: str
    lead: tuple[Part, ...]
    chart: Chart | None
    cure: tuple[Part, ...]
    why: tuple[Part, ...]
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Choice(Part):
    """One of several parts at a time, named by the reader; `options` are (name, part), the first shown at first."""

    label: str
    options: tuple[tuple[str, Part], ...]


@dataclass(frozen=True)
class Section(Part):
    """A heading with what belongs under it."""

    anchor: str
    heading: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Page(Part):
    """The whole report: its name, one line of what ran, one line of what was found, and the sections."""

    lang: str
    heading: str
    run: str
    verdict: str
    severity: Severity | None
    sections: tuple[Section, ...]
    foot: str


# charts ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """What a direction of a chart measures.

    `share` shows percent. `log` is for values over decades: positive ones, or, when `signed`, on both sides of zero.
    `signed` colors grow both ways from zero.
    """

    title: str
    share: bool = False
    log: bool = False
    signed: bool = False


@dataclass(frozen=True)
class Rule:
    """A line across a chart at one value."""

    value: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One line over steps. Curves of one `group` share a color; a `faint` one stands behind."""

    group: str
    x: tuple[float, ...]
    y: Values
    faint: bool = False


@dataclass(frozen=True)
class Curves(Chart):
    """Values over steps. `ordered` groups follow one another (depth, time) and take the colors of a ramp."""

    title: str
    x: Axis
    y: Axis
    curves: tuple[Curve, ...]
    rules: tuple[Rule, ...] = ()
    ordered: bool = False
    note: str = ""


@dataclass(frozen=True)
class Column:
    """One line down the depth: a value for each place of its `Profile`."""

    group: str
    values: Values


@dataclass(frozen=True)
class Profile(Chart):
    """Values down the depth of the network, the first place on top; lines join places of the same role."""

    title: str
    places: tuple[str, ...]
    roles: tuple[str, ...]
    x: Axis
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    ordered: bool = False
    note: str = ""


@dataclass(frozen=True)
class HeatMap(Chart):
    """Values over steps for each place: ``values[place][step]``."""

    title: str
    places: tuple[str, ...]
    steps: tuple[int, ...]
    values: tuple[Values, ...]
    x: Axis
    color: Axis
    note: str = ""


@dataclass(frozen=True)
class Bands(Chart):
    """A distribution over steps: ``values[quantile][step]``, quantiles in pairs around the median."""

    title: str
    steps: tuple[int, ...]
    quantiles: tuple[float, ...]
    values: tuple[Values, ...]
    x: Axis
    y: Axis
    rules: tuple[Rule, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Interval:
    """A value with the interval around it; equal ends for a bare value."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Intervals(Chart):
    """Values with their intervals, one a row, against the rules."""

    title: str
    rows: tuple[Interval, ...]
    x: Axis
    rules: tuple[Rule, ...] = ()
    note: str = ""
