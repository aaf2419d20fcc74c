"""The tree of parts as text: tables that fit the terminal, curves as rows of blocks, no colors unless asked for.

Everything in a record is a stranger's data: control characters, which could drive the terminal, are made visible.
"""

from __future__ import annotations

import math
import re
import shutil
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import singledispatch

from normscope.record.reader import Record
from normscope.report.numbers import amount, count
from normscope.report.page import tree
from normscope.report.parts import (
    FIRST,
    Axis,
    Bands,
    Card,
    Choice,
    Code,
    Curves,
    Facts,
    HeatMap,
    Intervals,
    Labelled,
    Names,
    Page,
    Paragraph,
    Part,
    Profile,
    Row,
    Section,
    Table,
    Values,
    visible,
)
from normscope.report.quantities import spans_decades
from normscope.report.thin import thin
from normscope.report.words import Words, load
from normscope.terms.finding import Diagnosis

WIDTH = 80
ROWS = 12  # rows of one chart
NUMBER = 11  # columns of a number
OTHERS = 8  # names of what a page lets one choose besides
_BLOCKS = "▁▂▃▄▅▆▇█"
_GAP = "·"
_PIECE = re.compile(r"\s+|(?:[\x21-\u2fff]+|.)[，。；：、！？）]*")  # what a line must not break: a word with its marks
_COLORS = {"error": "31", "warning": "33", "note": "34", "heading": "1", "quiet": "2"}


def show(
    record: Record | None,
    diagnosis: Diagnosis,
    *,
    width: int | None = None,
    lang: str = "en",
    color: bool = False,
) -> str:
    """The report of a run as text.

    Args:
        record: the run; None for a model at rest, of which there are findings alone.
        diagnosis: its findings.
        width: columns of a line; the terminal's when left out, 80 where there is none.
        lang: ``"en"`` or ``"zh"``.
        color: whether severities and headings are colored, with ANSI sequences.

    Raises:
        UnknownNameError: the report does not speak `lang`.
    """
    room = max(40, width or shutil.get_terminal_size((WIDTH, 24)).columns)
    return paint(tree(record, diagnosis, lang=lang), width=room, color=color)


def paint(page: Page, *, width: int = WIDTH, color: bool = False) -> str:
    """The tree as text, ending in a line break."""
    brush = Brush(width, load(page.lang), color)
    lines = [
        brush.lit(visible(page.heading), "heading"),
        *brush.wrapped(page.verdict, page.severity or ""),
        *brush.wrapped(page.run, "quiet"),
    ]
    for section in page.sections:
        lines += ["", *_part(section, brush)]
    return "\n".join([*(line.rstrip() for line in lines), ""])


@dataclass(frozen=True)
class Brush:
    """How wide a line is, in which language, and whether there are colors."""

    width: int
    words: Words
    color: bool

    def lit(self, text: str, role: str) -> str:
        """`text` in the color of its role."""
        text = visible(text)
        return f"\x1b[{_COLORS[role]}m{text}\x1b[0m" if self.color and role in _COLORS else text

    def wrapped(self, text: str, role: str = "") -> list[str]:
        """`text` in lines that fit."""
        return [self.lit(line, role) for line in _wrap(visible(text), self.width)]

    def narrower(self, columns: int) -> Brush:
        """The same with less room."""
        return Brush(self.width - columns, self.words, self.color)


@singledispatch
def _part(part: Part, brush: Brush) -> list[str]:
    raise TypeError(f"a terminal has no way to show {type(part).__name__}")


@_part.register
def _(part: Section, brush: Brush) -> list[str]:
    lines = [brush.lit(part.heading, "heading"), "─" * min(columns_of(part.heading), brush.width)]
    for place, inner in enumerate(part.parts):
        lines += ([""] if place else []) + _part(inner, brush)
    return lines


@_part.register
def _(part: Paragraph, brush: Brush) -> list[str]:
    return brush.wrapped(part.text, "quiet" if part.quiet else "")


@_part.register
def _(part: Code, brush: Brush) -> list[str]:
    return ["    " + visible(line) for line in part.text.splitlines()]


@_part.register
def _(part: Facts, brush: Brush) -> list[str]:
    name_width = min(max((columns_of(name) for name, _ in part.rows), default=0), brush.width // 3)
    lines = []
    for name, value in part.rows:
        told = _wrap(visible(value), brush.width - name_width - 2) or [""]
        lines += [f"{fit(head, name_width)}  {line}" for head, line in zip([name] + [""] * len(told), told)]
    return lines


@_part.register
def _(part: Table, brush: Brush) -> list[str]:
    rows = [part.columns, *part.rows]
    widths = [max(columns_of(visible(row[at])) for row in rows) for at in range(len(part.columns))]
    while sum(widths) + 2 * (len(widths) - 1) > brush.width:
        widths[widths.index(max(widths))] -= 1
    lines = ["  ".join(fit(row[at], widths[at], right=at in part.numeric) for at in range(len(widths))) for row in rows]
    return [lines[0], "─" * min(brush.width, sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]


@_part.register
def _(part: Names, brush: Brush) -> list[str]:
    rest = len(part.names) - FIRST
    names = [*part.names[:FIRST], *([brush.words.counted("more", rest)] if rest > 0 else [])]
    return brush.wrapped(f"{part.label}: {', '.join(names)}")


@_part.register
def _(part: Labelled, brush: Brush) -> list[str]:
    return [
        brush.lit(part.label, "quiet"),
        *_indented([line for inner in part.parts for line in _part(inner, brush.narrower(2))]),
    ]


@_part.register
def _(part: Row, brush: Brush) -> list[str]:
    return [line for at, inner in enumerate(part.parts) for line in ([""] if at else []) + _part(inner, brush)]


@_part.register
def _(part: Card, brush: Brush) -> list[str]:
    head = f"{brush.lit(part.tag, part.severity)}  {brush.lit(part.heading, 'heading')}  {visible(part.code)}"
    inner = brush.narrower(2)
    links = [Paragraph(" · ".join(label for label, _ in part.links), quiet=True)] if part.links else []
    body = [*part.lead, *links, *([part.chart] if part.chart else []), *part.cure, *part.why]
    lines = [line for piece in body for line in _part(piece, inner)]
    return [head, *_indented([*inner.wrapped(part.aside, "quiet"), *lines])]


@_part.register
def _(part: Choice, brush: Brush) -> list[str]:
    (_, shown), *others = part.options
    lines = _part(shown, brush)
    if others:
        names = ", ".join([*(name for name, _ in others[:OTHERS]), *(["…"] if len(others) > OTHERS else [])])
        lines += brush.wrapped(brush.words("terminal.others", n=count(len(others)), names=names), "quiet")
    return lines


# charts ---------------------------------------------------------------------------------------------------------------


@_part.register
def _(part: Curves, brush: Brush) -> list[str]:
    rows = [(curve.group, curve.y) for curve in part.curves if not curve.faint]
    return _chart(part.title, part.note, rows, part.y, brush)


@_part.register
def _(part: HeatMap, brush: Brush) -> list[str]:
    return _chart(part.title, part.note, list(zip(part.places, part.values)), part.color, brush)


@_part.register
def _(part: Bands, brush: Brush) -> list[str]:
    rows = [(f"{100 * quantile:g}%", values) for quantile, values in zip(part.quantiles, part.values)]
    return _chart(part.title, part.note, thin(rows[::-1], 5), part.y, brush)


@_part.register
def _(part: Profile, brush: Brush) -> list[str]:
    name_width = min(max(map(columns_of, part.places), default=0), brush.width // 3)
    room = brush.width - name_width
    columns = thin(part.columns, max(1, room // (NUMBER + 2)))
    bar = min(room // len(columns) - NUMBER - 3, brush.width)
    scale = _scale([column.values for column in part.columns], part.x)
    lines = brush.wrapped(part.title)
    if len(part.columns) > 1:
        heads = (f"  {fit(column.group, max(bar + 1, 0) + NUMBER)}" for column in columns)
        lines.append(" " * name_width + "".join(heads))
    for depth, place in thin(tuple(enumerate(part.places)), 2 * ROWS):
        values = (column.values[depth] for column in columns)
        cells = (f"  {_bar(value, bar, scale)}{fit(amount(value, share=part.x.share), NUMBER)}" for value in values)
        lines.append(f"{tail(place, name_width)}{''.join(cells)}")
    return [*lines, *_left_out(len(part.places), 2 * ROWS, brush), *_notes(part.note, brush)]


@_part.register
def _(part: Intervals, brush: Brush) -> list[str]:
    rows = tuple(
        (row.name, *(amount(value, share=part.x.share) for value in (row.value, row.low, row.high)))
        for row in part.rows
    )
    columns = (part.x.title, brush.words("interval.value"), brush.words("interval.low"), brush.words("interval.high"))
    return [
        *brush.wrapped(part.title),
        *_part(Table(columns, rows, numeric=(1, 2, 3)), brush),
        *_notes(part.note, brush),
    ]


def _chart(title: str, note: str, rows: Sequence[tuple[str, Values]], axis: Axis, brush: Brush) -> list[str]:
    """A sentence, then a row of blocks for each name with its first and last value, all on one scale."""
    name_width = min(max((columns_of(visible(name)) for name, _ in rows), default=0), brush.width // 3)
    room = max(8, brush.width - name_width - 26)
    scale = _scale([values for _, values in rows], axis)
    lines = brush.wrapped(title)
    for name, values in thin(rows, ROWS):
        finite = [value for value in values if value is not None]
        ends = f"{amount(finite[0], share=axis.share)} → {amount(finite[-1], share=axis.share)}" if finite else "–"
        lines.append(
            f"{tail(name, name_width)}  {fit(_sparkline(values, room, scale), min(room, len(values)))}  {ends}"
        )
    return [*lines, *_left_out(len(rows), ROWS, brush), *_notes(note, brush)]


def _notes(note: str, brush: Brush) -> list[str]:
    return brush.wrapped(note, "quiet") if note else []


def _left_out(n: int, shown: int, brush: Brush) -> list[str]:
    return brush.wrapped(brush.words("terminal.rows", shown=shown, n=count(n)), "quiet") if n > shown else []


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    log: bool

    def __call__(self, value: float) -> float:
        """Where `value` lies between low (0) and high (1)."""
        low, high, at = (math.log(end) if self.log else end for end in (self.low, self.high, value))
        return (at - low) / (high - low) if high > low else 0.5


def _scale(rows: Iterable[Values], axis: Axis) -> _Scale:
    log = axis.log and not axis.signed
    known = [value for values in rows for value in values if value is not None and (value > 0 or not log)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    return _Scale(low if log else min(low, 0.0), max(high, 1.0) if axis.share else high, log)


def _sparkline(values: Values, room: int, scale: _Scale) -> str:
    """One block a value, at most `room` of them.

    >>> _sparkline((0.0, 0.5, None, 1.0), 8, _Scale(0, 1, False))
    '▁▅·█'
    """
    return "".join(_GAP if value is None else _BLOCKS[_level(value, scale)] for value in thin(values, room))


def sparkline(values: Values, room: int, *, share: bool = False) -> str:
    """`values` as one block each, at most `room` of them, on a scale of their own; a share's is from 0 to 1.

    >>> sparkline((1.0, 2.0, None, 3.0), 8)
    '▃▆·█'
    """
    shown = Axis("", share=share, log=not share and spans_decades([values]))
    return _sparkline(values, room, _scale([values], shown))


def _level(value: float, scale: _Scale) -> int:
    if scale.log and value <= 0:
        return 0
    return min(len(_BLOCKS) - 1, max(0, round(scale(value) * (len(_BLOCKS) - 1) + 0.01)))


def _bar(value: float | None, room: int, scale: _Scale) -> str:
    """A bar and a blank behind it; nothing where there is no room for either."""
    if room < 1:
        return ""
    if value is None or (scale.log and value <= 0):
        return fit(_GAP, room + 1)
    return fit("█" * max(1, round(scale(value) * room)), room + 1)


# lines ----------------------------------------------------------------------------------------------------------------


def columns_of(text: str) -> int:
    """How many columns `text` takes: two for a Chinese character, none for a combining one.

    >>> columns_of("层 1")
    4
    """
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else not unicodedata.combining(sign) for sign in text)


def fit(text: str, width: int, *, right: bool = False) -> str:
    """`text` in exactly `width` columns, cut at the end."""
    text = visible(text)
    if columns_of(text) > width:
        while text and columns_of(text) > width - 1:
            text = text[:-1]
        text += "…"
    blank = " " * (width - columns_of(text))
    return blank + text if right else text + blank


def tail(text: str, width: int) -> str:
    """`text` in exactly `width` columns, cut at the beginning: the end of a path tells layers apart."""
    text = visible(text)
    return fit(text if columns_of(text) <= width else "…" + text[1 - width :], width)


def _indented(lines: Iterable[str]) -> list[str]:
    return ["  " + line if line else line for line in lines]


def _wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns; Chinese breaks between any two characters, but not before a mark."""
    if columns_of(text) == len(text):
        return textwrap.wrap(text, max(width, 10), break_on_hyphens=False)
    lines, line = [], ""
    for piece in _PIECE.findall(text):
        if line and columns_of(line + piece) > width:
            lines.append(line.rstrip())
            line = ""
        line += piece if line or not piece.isspace() else ""
    return [*lines, line.rstrip()] if line.strip() else lines
